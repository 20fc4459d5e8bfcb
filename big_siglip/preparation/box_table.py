"""Boxes that a table says of images, such as what a detector found.

A row is a box, or an image with lists of boxes, texts and scores.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

from big_siglip.data.box_reading import as_fractions
from big_siglip.data.boxes import problems
from big_siglip.data.sources.example import NAME_NAMES
from big_siglip.data.sources.folder.table import Table
from big_siglip.data.sources.folder.tables import IMAGE_NAMES, open_table
from big_siglip.data.sources.storage import Storage
from big_siglip.errors import BadExample, UserError

# What columns are called, best first: of the image, its boxes, texts, scores.
_NAMES = {
  "image": (*NAME_NAMES, *IMAGE_NAMES),
  "box": ("box", "bbox", "boxes"),
  "text": (
    *("box_text", "box_texts", "text", "texts", "phrase", "label", "labels"),
    *("category", "class", "class_name"),
  ),
  "score": ("score", "scores", "box_score", "box_scores", "confidence"),
}
# A column for each number, in the place of one for the box.
_CORNERS = {
  "yxyx": (("ymin", "xmin", "ymax", "xmax"), ("y0", "x0", "y1", "x1")),
  "xyxy": (("xmin", "ymin", "xmax", "ymax"), ("x0", "y0", "x1", "y1")),
  "xywh": (("x", "y", "width", "height"), ("x", "y", "w", "h")),
}


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of a table say what; `box` is one, or four."""

  image: str
  box: tuple[str, ...]
  text: str
  score: str | None


@dataclasses.dataclass(frozen=True)
class Found:
  """One box as a table has it: its numbers may be none."""

  line: int
  box: tuple[float, ...]
  text: str
  score: float | None


@dataclasses.dataclass
class BoxTable:
  """All boxes of a table, by the names of their images.

  Attributes:
    form: one of `box_reading.BOX_FORMATS`.
    has_scores: whether it has a column of scores.
    by_image: the boxes of each image, in the table's order.
    counts: rows; and what was left out, by why.
    refused: {"line", "image", "reason"} of what cannot be used.
    matched: the names that were asked for.
  """

  form: str
  has_scores: bool
  by_image: dict[str, list[Found]] = dataclasses.field(default_factory=dict)
  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  refused: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  matched: set[str] = dataclasses.field(default_factory=set)

  def refuse(self, line: int, name: str, reason: str) -> None:
    """Counts and lists a box that cannot be used."""
    self.count(f"refused: {reason}")
    self.refused.append({"line": line, "image": name, "reason": reason})

  def lost(self) -> list[dict[str, Any]]:
    """Returns the boxes whose images nobody asked for, as `refused`."""
    return [
      {"line": entry.line, "image": name, "reason": "names no image"}
      for name, entries in self.by_image.items()
      if name not in self.matched
      for entry in entries
    ]

  def count(self, kind: str, number: int = 1) -> None:
    """Counts something."""
    self.counts[kind] = self.counts.get(kind, 0) + number


def read(
  file: str, form: str, columns: Sequence[str], min_score: float | None
) -> BoxTable:
  """Reads a table.

  Args:
    file: CSV, TSV, JSON Lines or Parquet; local or remote.
    form: of its boxes: `box_reading.as_fractions`.
    columns: of the image, the box, the text and the score, in this order; those
      left out are found by their names.
    min_score: boxes with less are left out.

  Raises:
    UserError: it cannot be read, or lacks a column.
  """
  try:
    table = open_table(file, Storage())
  except BadExample as error:
    raise UserError(f"--table={file}: {error}") from error
  named = choose(table, form, columns)
  if min_score is not None and named.score is None:
    raise UserError(
      f"--min_score={min_score}: {file} has no column of scores"
      f" ({', '.join(_NAMES['score'])}); it has {', '.join(table.columns)}"
    )
  found = BoxTable(form, named.score is not None)
  for row in table.rows():
    name = row.fields.get(named.image)
    name = "" if name is None else str(name).strip()
    reason = row.problem or ("" if name else "no name of an image")
    entries = [] if reason else list(_entries(row.line, row.fields, named))
    if reason or None in entries:
      found.count("rows")
      found.refuse(row.line, name, reason or "other shape")
      continue
    for entry in filter(None, entries):
      found.count("rows")
      if min_score is not None and not (entry.score or 0) >= min_score:
        found.count("below the score")
      else:
        found.by_image.setdefault(name, []).append(entry)
  return found


def choose(table: Table, form: str, columns: Sequence[str]) -> Columns:
  """Returns the columns: those that were named, or are usually called so.

  Raises:
    UserError: one is missing.
  """
  present = {name.strip().lower(): name for name in reversed(table.columns)}
  given = dict(zip(_NAMES, columns, strict=False))
  if lacks := [name for name in given.values() if name not in table.columns]:
    raise UserError(
      f"--columns: {table.where} has no {', '.join(lacks)}; it has"
      f" {', '.join(table.columns)}"
    )
  chosen = {
    what: given.get(what)
    or next((present[n] for n in names if n in present), None)
    for what, names in _NAMES.items()
  }
  box = (chosen["box"],) if chosen["box"] else None
  for names in _CORNERS[form]:
    if not box and all(name in present for name in names):
      box = tuple(present[name] for name in names)
  missing = [what for what in ("image", "text") if not chosen[what]]
  if missing or not box:
    raise UserError(
      f"--table={table.where}: no column of the"
      f" {' and of the '.join([*missing, *([] if box else ['box'])])};"
      f" --columns=IMAGE,BOX,TEXT,SCORE names them; it has"
      f" {', '.join(table.columns)}"
    )
  return Columns(chosen["image"], box, chosen["text"], chosen["score"])


def _entries(
  line: int, fields: Mapping[str, Any], columns: Columns
) -> Iterator[Found | None]:
  """Yields the boxes of a row; None where its lists do not fit together."""
  boxes: Any = [fields.get(key) for key in columns.box]
  if len(boxes) == 1:
    boxes = _value(boxes[0])
  texts = _value(fields.get(columns.text))
  scores = _value(fields.get(columns.score)) if columns.score else None
  if not boxes:
    if boxes is None or texts:
      yield None
    return
  if not isinstance(boxes, list) or not isinstance(boxes[0], list):
    boxes, texts, scores = [boxes], [texts], [scores]
  elif scores is None:
    scores = [None] * len(boxes)
  parts = boxes, texts, scores
  if not all(
    isinstance(part, list) and len(part) == len(boxes) for part in parts
  ):
    yield None
    return
  for box, text, score in zip(*parts, strict=True):
    numbers = tuple(map(_number, box if isinstance(box, list) else ()))
    if len(numbers) != 4:
      yield None
      continue
    text = text if isinstance(text, str) else ""
    yield Found(line, numbers, text.strip(), _score(score, columns))


def _score(value: Any, columns: Columns) -> float | None:
  return _number(value) if columns.score else None


def _value(value: Any) -> Any:
  """Returns a cell; one that is a list in JSON as a list."""
  if isinstance(value, str) and value.lstrip().startswith("["):
    try:
      return json.loads(value)
    except (ValueError, RecursionError):
      return value
  return value


def _number(value: Any) -> float:
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan


def of_image(
  table: BoxTable, name: str, height: int, width: int, most: int | None
) -> tuple[list[tuple[float, ...]], list[str], list[float]]:
  """Returns an image's boxes, in the table's order.

  Args:
    table: counts what is left out.
    name: of the image.
    height: in pixels; matters for forms in pixels alone.
    width: the same.
    most: how many boxes to keep, those with the highest scores; None: all.

  Returns:
    (top, left, bottom, right) of each in fractions, its text, its score; no
    scores where the table has none.
  """
  found = table.by_image.get(name, [])
  table.matched |= {name} if found else set()
  if not found:
    return [], [], []
  fractions = as_fractions([f.box for f in found], table.form, height, width)
  texts = [entry.text for entry in found]
  scores = [e.score for e in found] if table.has_scores else None
  wrong = problems(fractions, texts, scores)
  for entry, problem in zip(found, wrong, strict=True):
    if problem:
      table.refuse(entry.line, name, problem)
  good = [i for i, problem in enumerate(wrong) if not problem]
  if most is not None and len(good) > most:
    table.count("beyond --max_boxes", len(good) - most)
    if scores:  # Of equal ones, the first.
      good = sorted(good, key=lambda i: -(scores[i] or 0))
    good = sorted(good[:most])
  clipped = fractions.clip(0, 1).tolist()
  return (
    [tuple(clipped[i]) for i in good],
    [texts[i] for i in good],
    [scores[i] for i in good] if scores else [],
  )
