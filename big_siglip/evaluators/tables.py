"""Rows of an evaluation: what became of each image, and of each query.

Shape letters: N images that could be read, C classes, A right classes.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from big_siglip.evaluators.embed import Rows
from big_siglip.evaluators.result import Table

BETWEEN = " | "  # The right classes of an image that has several.
UNREADABLE = "cannot be read"
NO_CLASS = "no class"
NOT_FINITE = "not finite"


def classified(
  images: Rows,
  count: int,
  index: np.ndarray,
  names: Sequence[str],
  *,
  predicted: np.ndarray,
  answers: np.ndarray,
  right: np.ndarray,
  further: Mapping[str, Sequence[Any]] = {},
) -> Table:
  """Returns a row for each image of a data set, in its order.

  Columns: "key" (file or name), "row" (its number), "label", "right",
  "predicted", those of `further`, and "note", why an image has no label, no
  class or no row in the metrics.

  Args:
    images: what was embedded.
    count: how many images there are, with those that cannot be read.
    index: N, the numbers of those that could.
    names: C, of the classes.
    predicted: N, classes; -1 where the embedding is not finite.
    answers: NA, the right classes, padded with -1.
    right: N bool.
    further: columns of N values.
  """
  labels = [
    BETWEEN.join(names[int(c)] for c in row if c >= 0) or None
    for row in answers.tolist()
  ]
  known = [label is not None for label in labels]
  notes = [
    NO_CLASS if not label else NOT_FINITE if number < 0 else None
    for label, number in zip(labels, predicted.tolist(), strict=True)
  ]
  columns = {
    "label": labels,
    "right": [
      hit if there else None
      for hit, there in zip(right.tolist(), known, strict=True)
    ],
    "predicted": [names[c] if c >= 0 else None for c in predicted.tolist()],
    **further,
    "note": notes,
  }
  table: Table = {
    "key": list(map(images.name, range(count))),
    "row": list(range(count)),
    **{name: [None] * count for name in columns},
  }
  table["note"] = [UNREADABLE] * count
  for name, values in columns.items():
    for place, value in zip(index.tolist(), values, strict=True):
      table[name][place] = value
  return table


def plain(values: np.ndarray) -> list[Any]:
  """Returns Python's numbers; None for what is not finite.

  A float32 becomes the shortest number that reads as the same float32.
  """
  if values.dtype == np.float32:
    return [float(str(v)) if math.isfinite(v) else None for v in values]
  return [v if math.isfinite(v) else None for v in values.tolist()]


def places(rank: np.ndarray) -> list[int | None]:
  """Returns ranks as whole numbers; None for infinite ones."""
  return [int(r) if math.isfinite(r) else None for r in rank.tolist()]
