"""Tables that have a row for each box of an image."""

from collections.abc import Mapping
import json
import re
from typing import Any

_BETWEEN = re.compile(r"[\s,;]+")


def add(
  fields: dict[str, Any], row: Mapping[str, Any], key: str, text_key: str
) -> None:
  """Adds a row's box and its text to those of the image.

  A row that has a list of boxes, or none, changes nothing: of fields the first
  row of an image counts. So does one that says again what another said, as
  tables with a row for each caption do.

  Args:
    fields: of the image.
    row: one of its rows; a box is four numbers, or a cell with them.
    key: of boxes.
    text_key: of their texts.
  """
  box = _one_box(row.get(key))
  if box is None:
    return
  first = fields.get(key)
  if first in (None, "") or _one_box(first) is not None:  # No list of them yet.
    fields[key], fields[text_key] = [], []
  known = fields[key], fields[text_key]
  if not all(isinstance(values, list) for values in known):
    return
  if (box, row.get(text_key)) not in zip(*known, strict=False):
    fields[key] = [*fields[key], box]
    fields[text_key] = [*fields[text_key], row.get(text_key)]


def _one_box(value: Any) -> list[Any] | None:
  """Returns four numbers; None for what is no single box."""
  if isinstance(value, str):
    try:
      value = json.loads(value)
    except (ValueError, RecursionError):
      value = _numbers(value)
  is_one = isinstance(value, list | tuple) and len(value) == 4
  return list(value) if is_one and not isinstance(value[0], list) else None


def _numbers(text: str) -> list[float] | None:
  try:
    return [float(x) for x in _BETWEEN.split(text.strip(" []()\t,;"))]
  except ValueError:
    return None
