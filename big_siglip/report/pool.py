"""Held-out examples, and what each run's model makes of them.

Shape letters: I images, T different captions.
"""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from big_siglip.data.sources import Example, Source
from big_siglip.errors import BadExample, naming_evaluation, UserError
from big_siglip.evaluators import make_evaluator
from big_siglip.evaluators.classification import ZeroShotClassification
from big_siglip.report.thumbnails import shrink
from big_siglip.report.wanted import Wanted
from big_siglip.trained import inference
from big_siglip.trained.vectors import sigmoid


@dataclasses.dataclass
class Pool:
  """Some examples of a data set.

  Attributes:
    source: where they come from.
    index: I, their numbers in it.
    thumbnails: I small images, uint8 [h, w, 3].
    texts: the T different captions of them.
    right: IT bool, whether a caption is one of an image's.
    skipped: what could not be read, a sentence each.
  """

  source: Source
  index: list[int]
  thumbnails: list[np.ndarray]
  texts: list[str]
  right: np.ndarray
  skipped: list[str]

  def captions(self, image: int) -> list[str]:
    """Returns the captions of one of the images."""
    return [self.texts[t] for t in np.flatnonzero(self.right[image])]

  def spread(self, count: int) -> list[int]:
    """Returns the numbers of so many of the images, evenly spread."""
    chosen = np.linspace(0, len(self.index) - 1, min(count, len(self.index)))
    return list(dict.fromkeys(chosen.astype(int).tolist()))


class Guesses(NamedTuple):
  """What a classifier says.

  Attributes:
    names: I, the class that it takes for the likeliest.
    labels: I, the right one, or ones.
    right: I bool, whether it is a right one.
    captions: I, the class as a prompt.
    probabilities: I, that the prompt belongs to the image.
  """

  names: list[str]
  labels: list[str]
  right: np.ndarray
  captions: list[str]
  probabilities: np.ndarray


class Answers(NamedTuple):
  """What a model says.

  Attributes:
    texts: IT float32, the probability that text and image belong together.
    guesses: of the classes; None without any.
  """

  texts: np.ndarray
  guesses: Guesses | None


@dataclasses.dataclass(frozen=True)
class Part:
  """Some examples of a source, as a source."""

  source: Source
  index: Sequence[int]

  def __getattr__(self, name: str) -> Any:
    """Labels, and what they are called, are those of the whole."""
    return getattr(self.source, name)

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, number: int) -> Example:
    return self.source[self.index[number]]


def read_pool(source: Source, count: int) -> Pool:
  """Returns `count` examples, evenly spread over the data set.

  Raises:
    UserError: nothing of it can be read.
  """
  chosen = np.linspace(0, len(source) - 1, min(count, len(source)))
  index, thumbnails, captions, skipped = [], [], [], []
  for number in dict.fromkeys(chosen.astype(int).tolist()):
    try:
      example = source[number]
      thumbnails.append(shrink(example))
    except BadExample as error:
      skipped.append(f"number {number}: {error}")
      continue
    index.append(number)
    captions.append(example.texts)
  if not index:
    raise UserError(f"none of {len(skipped)} images can be read")
  texts = list(dict.fromkeys(text for group in captions for text in group))
  place = {text: number for number, text in enumerate(texts)}
  right = np.zeros((len(index), len(texts)), bool)
  for image, group in enumerate(captions):
    right[image, [place[text] for text in group]] = True
  return Pool(source, index, thumbnails, texts, right, skipped)


def ask(model: inference.Model, pool: Pool, asked: Wanted) -> Answers:
  """Returns what a model says of a pool.

  Args:
    model: see `big_siglip.load`.
    pool: the examples.
    asked: how the run classifies them, if it does.

  Raises:
    UserError: classes or templates are wrong; the message names the evaluation.
  """
  part = Part(pool.source, pool.index)
  image = model.embed_images(part[i].image for i in range(len(part)))

  def probabilities(texts: Sequence[str]) -> np.ndarray:
    vectors = model.embed_texts(texts)
    logits = model.logit_scale * image @ vectors.T + model.logit_bias
    # What is not a number must not come out on top.
    return np.nan_to_num(sigmoid(logits), nan=0.0)

  texts = probabilities(pool.texts)
  if asked.spec is None:
    return Answers(texts, None)
  with naming_evaluation(asked.name or ""):
    evaluator = make_evaluator(
      ConfigDict(dict(asked.spec)),
      open_split=lambda split: part,
      preprocess=model.preprocess,
      embedders=model.embedders,
    )
    assert isinstance(evaluator, ZeroShotClassification)
    said = evaluator.predict(model.params)
  names = evaluator.names
  prompts = [evaluator.template.replace("{}", name) for name in names]
  # -1 is no class: the model's answer is not a number.
  predicted = np.maximum(said.predicted, 0)
  guesses = Guesses(
    names=[names[c] if c >= 0 else "nothing" for c in said.predicted],
    labels=[_join(names[c] for c in row if c >= 0) for row in said.answers],
    right=said.right,
    captions=[prompts[c] for c in predicted],
    probabilities=probabilities(prompts)[np.arange(len(image)), predicted],
  )
  return Answers(texts, guesses)


def _join(names: Iterable[str]) -> str:
  return " or ".join(names) or "no class"


def distinct(pool: Pool, count: int) -> list[tuple[int, int]]:
  """Returns up to `count` (image, caption), none right for two of the images.

  They depend on the data alone, so that runs can be compared.
  """
  chosen: list[tuple[int, int]] = []
  for image in np.flatnonzero(pool.right.any(axis=1)).tolist():
    text = int(pool.right[image].argmax())
    apart = all(
      not pool.right[image, other_text] and not pool.right[other, text]
      for other, other_text in chosen
    )
    if apart:
      chosen.append((image, text))
    if len(chosen) == count:
      break
  return chosen
