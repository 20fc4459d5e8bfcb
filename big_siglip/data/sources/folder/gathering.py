"""The rows of a folder's tables, checked and put together by image."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import itertools
import json
import os
import re
from typing import Any

from big_siglip.data.class_names import sort_labels
from big_siglip.data.sources.example import Options
from big_siglip.data.sources.folder import box_rows
from big_siglip.data.sources.folder.columns import choose_columns, Columns
from big_siglip.data.sources.folder.table import Row, Table
from big_siglip.data.sources.nested import dig
from big_siglip.data.sources.splits import canonical, is_split
from big_siglip.errors import UserError

# Texts in quotes, and a list of them; what backslashes stand before.
_ITEM = re.compile(r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\"""", re.DOTALL)
_ITEMS = rf"(?:{_ITEM.pattern})(?:\s*,\s*(?:{_ITEM.pattern}))*+"
_LIST = re.compile(rf"\[\s*{_ITEMS}\s*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r"}
_SPLIT = "split"  # A column that names each row's, as of Flickr30k's tables.
_SAMPLE = 64  # Rows that tell what their columns are.
# Examples of which `max_skipped` may be bad however few there are, as at the
# start of a run.
_AT_LEAST = 1_000

Find = Callable[[str], str | None]


@dataclasses.dataclass
class Gathered:
  """All images of a folder.

  Attributes:
    where: what messages call its table.
    columns: which of its columns are image, texts and label.
    boxes: which of them hold boxes and their texts, where these are asked for.
    images: the fields of each by its name, in the order of their first rows;
      texts are lists, and the image itself is not among them.
    splits: by image, where the data set has its own.
    has_splits: whether it has.
    split_key: the column that says so, if one does.
    missing: images that are not there.
    problems: of rows that are left out, each with its place.
    has_mistakes: whether one of them makes all rows doubtful.
    rows: how many there are.
  """

  where: str
  columns: Columns
  boxes: tuple[str, str] | None = None
  images: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  splits: dict[str, str] = dataclasses.field(default_factory=dict)
  has_splits: bool = False
  split_key: str | None = None
  missing: dict[str, int] = dataclasses.field(default_factory=dict)
  problems: list[str] = dataclasses.field(default_factory=list)
  has_mistakes: bool = False
  rows: int = 0

  @property
  def left_out(self) -> str:
    """What is left out, in a line; "" for nothing."""
    if not self.problems:
      return ""
    count = len(self.problems)
    return f"{count} of {self.rows} rows cannot be used: {self.problems[0]}"

  def add(
    self,
    table: Table,
    find: Find,
    folder: str | None = None,
    split: str | None = None,
    wanted: str = "all",
  ) -> None:
    """Adds the rows of a table.

    Args:
      table: has the columns that were chosen.
      find: an image as the table names it -> the name to call it by, or None.
      folder: what messages call the place of the images; None: that one is
        missing is no problem.
      split: of all rows that name none.
      wanted: the split whose rows are to be good, or "all".
    """
    keys = self.columns
    # A label that is also the text stays one: it is the class's name.
    lists = [key for key in keys.texts if key != keys.label]
    known = functools.cache(find)
    for row in table.rows():
      own = row.split or self._split(row) or split
      counts = wanted in ("all", own) or not own
      self.rows += counts
      problem = row.problem or _incomplete(row, keys)
      if problem:
        self.problems += [_at(table, row, problem)] * counts
        self.has_mistakes |= row.is_mistake
        continue
      names = _image_names(dig(row.fields, keys.image))
      found = next(filter(None, map(known, names)), None)
      if not found:
        found = names[0]
        self.missing.setdefault(found, row.line)
        if folder is not None and counts:
          why = _why_missing(found, folder)
          self.problems.append(_at(table, row, why))
      if found not in self.images:
        fields = {k: v for k, v in row.fields.items() if k != keys.image}
        self.images[found] = fields | {key: [] for key in lists}
        if own:
          self.splits[found] = own
      for key in lists:
        self.images[found][key] += _captions(dig(row.fields, key))
      if self.boxes:
        box_rows.add(self.images[found], row.fields, *self.boxes)

  def _split(self, row: Row) -> str | None:
    """Returns the split that a row names in its column."""
    word = row.fields.get(self.split_key) if self.split_key else None
    return canonical(str(word).strip()) if word else None

  def check(self, max_skipped: float) -> None:
    """Refuses a folder of which too much is bad.

    Raises:
      UserError: a row is a mistake that makes others doubtful; half of the rows
        or more are bad, or more than `max_skipped` of them; there are none.
    """
    bad = len(self.problems)
    too_many = 2 * bad >= self.rows or (
      bad > max_skipped * max(self.rows, _AT_LEAST)
    )
    if bad and (too_many or self.has_mistakes):
      count = f" ({bad} bad rows in all)" if bad > 1 else ""
      raise UserError(self.problems[0] + count)
    if not self.images:
      raise UserError(f"{self.where}: has no rows, so the data set is empty")


def begin(table: Table, options: Options) -> Gathered:
  """Returns the columns of a table, with no rows yet.

  Raises:
    UserError: see `choose_columns`; or it has no rows.
  """
  rows = itertools.islice(table.rows(), _SAMPLE)
  sample = [row.fields for row in rows if not row.problem]
  first = next(table.rows(), None)
  if not table.columns and first and first.problem:
    raise UserError(_at(table, first, first.problem))
  boxes = options.box_keys if {*options.box_keys} <= {*options.fields} else None
  columns = choose_columns(table, sample, options)
  gathered = Gathered(table.where, columns, boxes)
  words = {str(row.get(_SPLIT)).strip().lower() for row in sample}
  if _SPLIT in table.columns and words and all(map(is_split, words)):
    gathered.split_key, gathered.has_splits = _SPLIT, True
  return gathered


def _at(table: Table, row: Row, problem: str) -> str:
  place = f" {table.unit} {row.line}" if row.line else ""
  return f"{table.where}{place}: {problem}"


def _incomplete(row: Row, keys: Columns) -> str:
  """Returns what a row lacks: an image, any text at all, or its label."""
  image = dig(row.fields, keys.image)
  if not _image_names(image):
    return f"{keys.image} must be text and not empty"
  texts = (dig(row.fields, key) for key in keys.texts)
  if keys.needs_texts and not any(map(_has_text, texts)):
    return f"{keys.texts[0]} must be text and not empty"
  if keys.needs_label and row.fields.get(keys.label) in (None, ""):
    return f"{keys.label} must not be empty"
  return ""


def _has_text(value: Any) -> bool:
  if isinstance(value, list):
    return any(map(_has_text, value))
  # A label's text may be a number.
  return isinstance(value, int) or (
    isinstance(value, str) and bool(value.strip())
  )


def _image_names(value: Any) -> tuple[str, ...]:
  """Returns where an image may lie, best first; none for what is no name."""
  if isinstance(value, tuple):
    return value
  if isinstance(value, int) and not isinstance(value, bool):
    return (str(value),)  # As of COCO, without zeros and extension.
  return (value,) if isinstance(value, str) and value.strip() else ()


def _why_missing(image: str, folder: str) -> str:
  if "://" in image:
    return (
      f"{image!r} is a URL, and images are not fetched here: img2dataset"
      " downloads them"
    )
  return f"no image {image!r} in {folder} or its images/, nor below it"


def _captions(value: Any) -> list[Any]:
  """Returns the captions of a cell; it may be a list that was written out."""
  if isinstance(value, list):
    return value
  if isinstance(value, str) and _LIST.fullmatch(value):
    try:
      return json.loads(value)
    except ValueError:  # As Python prints it. Its own parser can be crashed.
      items = [match[1:-1] for match in _ITEM.findall(value)]
      return [_ESCAPE.sub(lambda m: _LETTERS.get(m[1], m[1]), i) for i in items]
  return [value]


def class_names(images: Mapping[str, Mapping[str, Any]], key: str):
  """Returns the names of all labels, in order; none is -1 among numbers."""
  names = {
    str(fields[key])
    for fields in images.values()
    if fields.get(key) not in (None, "")
  }
  if all(name.lstrip("-").isdigit() for name in names):
    names.discard("-1")  # No label, as of the Hub's test splits.
  return sort_labels(names)


def folder_of(path: str) -> tuple[str, str]:
  """Returns the folder and the name of a table in it."""
  folder, name = os.path.split(path)
  if os.path.basename(folder) == "annotations":
    return os.path.dirname(folder), os.path.join("annotations", name)
  return folder or ".", name
