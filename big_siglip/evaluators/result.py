"""What an evaluator says of a model."""

from typing import Any, NamedTuple


class Result(NamedTuple):
  """Numbers, and what is behind them.

  Attributes:
    metrics: {name: number}, what training logs.
    details: curves, histograms and tables as JSON holds them: lists, numbers
      and text; `big_siglip.evaluation.pictures` draws them.
  """

  metrics: dict[str, float]
  details: dict[str, Any]


def counted(nonfinite: int) -> dict[str, float]:
  """Returns "nonfinite", how many embeddings are not finite, if any."""
  return {"nonfinite": float(nonfinite)} if nonfinite else {}
