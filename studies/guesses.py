"""What captions of scenes are worth that were not written of the image."""

from collections.abc import Sequence
import pathlib

import numpy as np

import big_siglip
from big_siglip.datasets import scenes_draw
from big_siglip.evaluators import caption_metrics
from studies.runs import kept

_GREY = np.full((scenes_draw.SIDE, scenes_draw.SIDE, 3), 32, np.uint8)


def score(run: pathlib.Path, train: int, test: int) -> dict[str, float]:
  """Returns {"GUESS/exact_match" and "GUESS/cider": number}.

  `nearest` says the caption of the training scene whose embedding is nearest:
  never right, since no test scene means what a training scene means. `blind` is
  what the decoder writes of an empty scene. They are kept beside the run.

  Args:
    run: a finished one, with a decoder.
    train: how many training scenes are looked at.
    test: of how many scenes.
  """
  return kept(
    run / "guesses.json", [train, test], lambda: _score(run, train, test)
  )


def _score(run: pathlib.Path, train: int, test: int) -> dict[str, float]:
  model = big_siglip.load(run)
  known = [scenes_draw.train_example(i) for i in range(train)]
  held_out = list(scenes_draw.test_examples(test))
  rows, memory = (
    model.embed_images([scene.image for scene in scenes])
    for scenes in (held_out, known)
  )
  nearest = (rows @ memory.T).argmax(axis=1)
  true = [scene.phrasings for scene in held_out]
  guesses = {
    "nearest": [known[i].caption for i in nearest],
    "blind": model.caption([_GREY]) * test,
  }
  return {
    f"{name}/{metric}": value
    for name, written in guesses.items()
    for metric, value in _scores(written, true).items()
  }


def _scores(
  written: Sequence[str], true: Sequence[Sequence[str]]
) -> dict[str, float]:
  words = [text.split() for text in written]
  references = [[text.split() for text in texts] for texts in true]
  return {
    "exact_match": float(caption_metrics.exact(words, references).mean()),
    "cider": float(caption_metrics.cider(words, references).mean()),
  }
