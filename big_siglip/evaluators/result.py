"""What an evaluator says of a model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from big_siglip.evaluators.scores import Score

# Columns of equal length by name: text, numbers, bools; None where there is
# nothing to say.
Table = dict[str, list[Any]]


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
  """

  metrics: dict[str, float]
  details: dict[str, Any]
  images: int | None = None
  scores: Mapping[str, Score] = {}
  rows: Callable[[], Table] | None = None
  intervals: Mapping[str, tuple[float, float]] = {}


def counted(nonfinite: int) -> dict[str, float]:
  """Returns "nonfinite", how many embeddings are not finite, if any."""
  return {"nonfinite": float(nonfinite)} if nonfinite else {}
