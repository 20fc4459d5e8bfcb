"""What an evaluator says of a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from big_siglip.evaluators.scores import Score

# Columns of equal length by name: text, numbers, bools; None where there is
# nothing to say.
Table = dict[str, list[Any]]


EXAMPLES = 8  # That a process keeps, the first ones it has.


class MaskExample(NamedTuple):
  """What was predicted for the pixels of an image.

  Attributes:
    number: of the image.
    true: uint8 [H, W]; `masks.IGNORED` is no class.
    predicted: uint8 [H, W].
  """

  number: int
  true: np.ndarray
  predicted: np.ndarray


class MatchExample(NamedTuple):
  """Which patches of an image were found for those of a crop of it.

  Attributes:
    number: of the image.
    whole: uint8 [S, S, 3].
    crop: uint8 [S, S, 3].
    points: M2, the middles of patches in the crop, (down, right) in [0, 1].
    found: M2, of the patches in the whole that are most alike.
    truth: M2, where in the whole they are.
  """

  number: int
  whole: np.ndarray
  crop: np.ndarray
  points: np.ndarray
  found: np.ndarray
  truth: np.ndarray


class Result(NamedTuple):
  """Numbers, and what is behind them.

  Attributes:
    metrics: {name: number}, what training logs.
    details: curves, histograms and tables as JSON holds them: lists, numbers
      and text; `big_siglip.evaluation.pictures` draws them.
    images: how many the metrics are of; None where nobody counted.
    scores: the metrics that are means over images, and what each image adds.
    rows: () -> a row for each image or query, for one process alone; None where
      an evaluator has none.
    intervals: {metric: (low, high)}, of 95 %; see `evaluation.intervals`.
    examples: a few of what this process has seen, for a picture.
  """

  metrics: dict[str, float]
  details: dict[str, Any]
  images: int | None = None
  scores: Mapping[str, Score] = {}
  rows: Callable[[], Table] | None = None
  intervals: Mapping[str, tuple[float, float]] = {}
  examples: Sequence[MaskExample] | Sequence[MatchExample] = ()


def counted(nonfinite: int) -> dict[str, float]:
  """Returns "nonfinite", how many embeddings are not finite, if any."""
  return {"nonfinite": float(nonfinite)} if nonfinite else {}
