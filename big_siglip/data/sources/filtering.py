"""Which records are kept, by what they say of themselves."""

from typing import Any

import numpy as np

from big_siglip.data.sources.example import Filters, Records
from big_siglip.data.sources.nested import as_texts
from big_siglip.errors import UserError

_SIZE_KEYS = (  # Width and height in pixels, as data sets call them.
  ("width", "height"),
  ("WIDTH", "HEIGHT"),
  ("original_width", "original_height"),
  ("image_width", "image_height"),
  ("json/width", "json/height"),
)


def apply_filters(
  records: Records, filters: Filters
) -> tuple[np.ndarray | None, dict[str, int]]:
  """Returns the numbers of what is kept, None for all, and what went why.

  Raises:
    UserError: the data does not say what a filter needs.
  """
  keep = np.ones(len(records), bool)
  filtered = {}

  def drop(why: str, bad: np.ndarray) -> None:
    if count := int((keep & bad).sum()):
      filtered[why] = count
    keep[bad] = False

  if filters.min_size is not None or filters.max_aspect is not None:
    width, height = _sizes(records)
    drop("no size", ~((width > 0) & (height > 0)))
    short, long = np.minimum(width, height), np.maximum(width, height)
    if filters.min_size is not None:
      drop(f"min_size={filters.min_size}", short < filters.min_size)
    if filters.max_aspect is not None:
      drop(
        f"max_aspect={filters.max_aspect}", long > filters.max_aspect * short
      )
  if filters.min_score is not None:
    score = numbers(_needed(records, filters.score_key, "score_key"))
    drop("no score", np.isnan(score))
    drop(f"min_score={filters.min_score}", score < filters.min_score)
  if filters.language is not None:
    values = _needed(records, filters.language_key, "language_key")
    other = [filters.language not in as_texts(value) for value in values]
    drop(f"language={filters.language}", np.array(other, bool))
  return (None if keep.all() else np.flatnonzero(keep)), filtered


def _sizes(records: Records) -> tuple[np.ndarray, np.ndarray]:
  for keys in _SIZE_KEYS:
    columns = [numbers(records.columns([key])[key]) for key in keys]
    if not all(np.isnan(column).all() for column in columns):
      return columns[0], columns[1]
  raise UserError(
    f"config.data.filters: min_size and max_aspect need sizes; {records.where}"
    f" has none of the fields {', '.join('/'.join(k) for k in _SIZE_KEYS)}"
  )


def _needed(records: Records, key: str, field: str) -> np.ndarray:
  values = records.columns([key])[key]
  if all(value is None or value != value for value in values):
    raise UserError(
      f"config.data.filters.{field}={key!r}: {records.where} has no such field"
    )
  return values


def numbers(values: np.ndarray) -> np.ndarray:
  """Returns float64 [n], NaN for what is no number."""

  def number(value: Any) -> float:
    try:
      return float(value)
    except (TypeError, ValueError):
      return np.nan

  if values.dtype == np.float64:
    return values
  return np.array([number(value) for value in values], np.float64)
