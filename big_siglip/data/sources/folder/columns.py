"""Which columns of a folder's table are the image, its texts and its label."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from big_siglip.data import image_files
from big_siglip.data.sources import numbered
from big_siglip.data.sources.example import (
  LABEL_NAMES,
  Options,
  require_other_than_image,
  TEXT_NAMES,
)
from big_siglip.data.sources.folder.table import Table
from big_siglip.data.sources.folder.tables import IMAGE_NAMES
from big_siglip.data.sources.nested import dig
from big_siglip.errors import UserError

_TEXTS = ("caption", *TEXT_NAMES, "comment", "description", "sentence", "raw")


@dataclasses.dataclass(frozen=True)
class Columns:
  """What was chosen, and what no row may lack beside the image."""

  image: str
  texts: tuple[str, ...]
  label: str | None
  needs_texts: bool
  needs_label: bool


def choose_columns(
  table: Table, sample: Sequence[Mapping[str, Any]], options: Options
) -> Columns:
  """Returns the columns to read: those asked for, or those usually called so.

  Args:
    table: whose columns they are.
    sample: its first rows.
    options: name columns; also those of which nothing is made here.

  Raises:
    UserError: one is missing, or it is not clear which is the image or text.
  """
  present = table.columns
  image = options.image_key or _image(table, sample)
  label = options.label_key or table.label
  taken = (image, label, *options.fields)
  texts = tuple(options.text_weights) or _texts(table, sample, taken, label)
  if not texts and not label:  # A label is all that is said.
    free = [c for c in present if c not in (image, *options.fields)]
    label = _named(free, LABEL_NAMES)
    texts = (label,) if label else ()
  wanted = [image or "image", *texts, *options.fields]
  wanted += ["caption"] if options.needs_texts and not texts else []
  wanted += [options.label_key] if options.label_key else []
  require_other_than_image(wanted[0], texts, label)
  missing = [
    name
    for name in dict.fromkeys(wanted)
    if name not in present and not any(dig(row, name) for row in sample)
  ]
  if missing:
    raise UserError(
      f"{table.where}: missing column {', '.join(missing)}; it has:"
      f" {', '.join(present) or 'none'}"
    )
  needs_label = options.label_key is not None
  return Columns(image, texts, label, options.needs_texts, needs_label)


def _image(table: Table, sample) -> str | None:
  if name := _named(table.columns, IMAGE_NAMES):
    return name
  found = [
    column
    for column in table.columns
    if sample and all(_names_image(row.get(column)) for row in sample)
  ]
  if len(found) > 1:
    raise UserError(
      f"{table.where}: config.data.image_key=None: several columns name images:"
      f" {', '.join(found)}"
    )
  return found[0] if found else None


def _names_image(value: Any) -> bool:
  return isinstance(value, str) and image_files.is_image(value.strip())


def _texts(table: Table, sample, taken, label) -> tuple[str, ...]:
  """Returns the columns of captions; the label's where there are none."""
  others = [c for c in table.columns if c not in taken]
  for names in (table.text_names, _TEXTS):
    if name := _named(others, names):
      return numbered.alike(others, [numbered.stem(name)]) or (name,)
  if found := numbered.alike(others, _TEXTS):
    return found
  if label:
    return (label,)
  found = [c for c in others if any(_is_text(row.get(c)) for row in sample)]
  if len(found) == 1 and not _named(found, LABEL_NAMES):
    return tuple(found)
  return ()


def _is_text(value: Any) -> bool:
  if isinstance(value, list):
    return any(map(_is_text, value))
  if not isinstance(value, str) or not value.strip():
    return False
  try:
    float(value)
  except ValueError:
    return True
  return False


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
  """Returns the column that is called by the first of some names, if any."""
  for name in names:
    if name in columns:
      return name
  lower = {column.strip().lower(): column for column in reversed(columns)}
  return next((lower[n.lower()] for n in names if n.lower() in lower), None)
