"""Which words of a scene's caption its frozen patches tell: linear probes.

Shape letters: N scenes, D width, W words.
"""

from collections.abc import Iterable
import itertools
import pathlib

import numpy as np

import big_siglip
from big_siglip.data.sources import open_source
from big_siglip.datasets import scenes_draw
from studies.runs import kept

# A plural stands for its singular. "a" is no count: "two" and "three" are.
WORDS = {
  "count": ("two", "three"),
  "size": tuple(scenes_draw.SIZES),
  "colour": tuple(scenes_draw.COLOURS),
  "shape": tuple(scenes_draw.PLURALS),
}
_RIDGE = 1e-3  # Of the mean variance.


def probe(run: pathlib.Path, data: str, train: int, test: int) -> dict:
  """Returns {"attributes/KIND": mean balanced accuracy}: 0.5 is chance.

  The features are the means of the last block's patches, since a tower that
  learned to write alone has an untrained pool. They are kept beside the run.

  Args:
    run: a finished one.
    data: scenes.
    train: how many scenes the probes learn from.
    test: how many they are asked about.
  """

  def compute() -> dict[str, float]:
    model = big_siglip.load(run)
    parts = []
    for split, count in (("train", train), ("test", test)):
      source = itertools.islice(open_source(data, split), count)
      parts.append(_features(model, source))
    return {
      f"attributes/{kind}": accuracy(*(_of(words, part) for part in parts))
      for kind, words in WORDS.items()
    }

  return kept(run / "attributes.json", [data, train, test], compute)


def accuracy(
  learned: tuple[np.ndarray, np.ndarray], asked: tuple[np.ndarray, np.ndarray]
) -> float:
  """Returns the mean over words of the balanced accuracy of ridge regression.

  Args:
    learned: [N, D] features and [N, W] bool, what the probes learn from.
    asked: the same of other scenes.
  """
  x, y = learned
  mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
  x, z = (x - mean) / scale, (asked[0] - mean) / scale
  # Each side of a word weighs half, as in the figure.
  shares = y.mean(axis=0)
  targets = np.where(y, 0.5 / shares, -0.5 / (1 - shares))
  gram = x.T @ x / len(x) + _RIDGE * np.eye(x.shape[1])
  weights = np.linalg.solve(gram, x.T @ targets / len(x))
  scores = x @ weights
  middles = [
    (s[t].mean() + s[~t].mean()) / 2 for s, t in zip(scores.T, y.T, strict=True)
  ]
  found = z @ weights > np.asarray(middles)
  right = [
    (f[t].mean() + (~f[~t]).mean()) / 2
    for f, t in zip(found.T, asked[1].T, strict=True)
  ]
  return float(np.mean(right))


def _features(model, examples: Iterable) -> tuple[np.ndarray, list[set[str]]]:
  examples = list(examples)
  patches = model.embed_patches([example.image for example in examples])
  said = [set(example.texts[0].split()) for example in examples]
  return patches.mean(axis=(1, 2)), said


def _of(words, part):
  features, said = part
  truth = [
    [bool({word, scenes_draw.PLURALS.get(word)} & own) for word in words]
    for own in said
  ]
  return features, np.asarray(truth)
