"""Tables that name images: CSV, TSV and the like, JSON Lines, Parquet."""

from collections.abc import Iterator
import io
import itertools
import json
import re
from typing import Any

from big_siglip import extras
from big_siglip.data import delimited, image_files
from big_siglip.data.delimited import DELIMITERS
from big_siglip.data.sources.folder.table import Row, Table
from big_siglip.data.sources.storage import Storage
from big_siglip.data.tables import to_rows
from big_siglip.errors import UserError

DELIMITED = (".csv", ".tsv", ".txt", ".token")
LINES = ".jsonl"
PARQUET = ".parquet"
_DIGITS = re.compile(r"\d+")
_LINE = 2**16  # Letters of a first line.
# What a column of images is called, best first; none of it is case-sensitive.
IMAGE_NAMES = (
  "image",
  "file_name",
  "filename",
  "image_name",
  "image_file",
  "image_path",
  "img_path",
  "filepath",
  "file_path",
  "img",
  "path",
  "file",
)


def open_table(file: str, storage: Storage) -> Table:
  """Reads a table.

  Raises:
    UserError: it is no text, or no table.
    BadExample: it is not reached.
  """
  data = storage.read(file)
  if file.lower().endswith(PARQUET):
    return _parquet(file, data)
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{file}: must be UTF-8 text ({error})") from error
  if file.lower().endswith(LINES):
    return json_rows(file, read_lines(text))
  return _delimited(file, text)


def _delimited(file: str, text: str) -> Table:
  """Reads rows of cells; without a header only what is clear without one."""
  delimiter = _delimiter(file, text)
  head = next(delimited.read(text, delimiter), None)
  cells = [cell.strip() for cell in head.cells] if head else []
  has_header = not any(map(_is_image_name, cells))
  columns = _unique(cells) if has_header else _without_header(file, cells)
  # A list of images and captions that quotes nothing: CLIP_benchmark's.
  joins = file.lower().endswith(".txt") and len(columns) == 2

  def rows() -> Iterator[Row]:
    found = delimited.read(text, delimiter)
    for row in itertools.islice(found, 1, None) if has_header else found:
      cells = row.cells
      if joins and len(cells) > 2:
        cells = [cells[0], delimiter.join(cells[1:])]
      if delimiter == "|":
        cells = [cell.strip() for cell in cells]
      fields = dict(itertools.zip_longest(columns, cells[: len(columns)]))
      problem = problem_of(row, delimiter)
      problem = problem or _surplus(cells, columns, delimiter)
      yield Row(row.line, fields, problem, is_mistake=bool(problem))

  return Table(file, tuple(columns), rows)


def _delimiter(file: str, text: str) -> str:
  """Returns what parts the cells: a table's first line names an image, or so.

  Else it is what tables with this extension have, or what that line has.
  """
  known = DELIMITERS
  if file.lower().endswith(".csv"):
    known = (",", *(sign for sign in known if sign != ","))
  line = text[:_LINE].lstrip("\r\n")
  line = line.splitlines()[0] if line else ""
  for sign in known:
    cells = [cell.strip(' "').lower() for cell in line.split(sign)]
    names = (cell in IMAGE_NAMES or _is_image_name(cell) for cell in cells)
    if len(cells) > 1 and any(names):
      return sign
  return next((sign for sign in known if sign in line), known[0])


def _surplus(cells: list[str], columns: list[str], delimiter: str) -> str:
  if not any(cells[len(columns) :]):
    return ""
  hint = "; quote captions that hold commas" if delimiter == "," else ""
  return f"more fields than columns{hint}"


def _unique(columns: list[str]) -> list[str]:
  """Returns columns of which none has another's name: caption, caption_2 ..."""
  return [
    f"{name}_{columns[: i + 1].count(name)}" if name in columns[:i] else name
    for i, name in enumerate(columns)
  ]


def problem_of(row: delimited.Cells, delimiter: str) -> str:
  """Returns what is wrong with the quotes of a row; "" for nothing."""
  if any(_is_row(line, row.cells, delimiter) for line in row.swallowed):
    return "a quote before its text is closed rows later"
  return row.problem


def _is_row(line: str, own: list[str], delimiter: str) -> bool:
  """Whether a line within a quoted text is a row: it has an image's name.

  That ends as images do, or differs from one of the row's own cells in its
  digits alone.
  """
  cells = line.split(delimiter)
  if len(cells) < len(own) or len(own) < 2:
    return False
  if any(map(_is_image_name, cells)):
    return True
  pairs = zip(cells, own, strict=False)
  return any(
    _DIGITS.search(cell) and _DIGITS.sub("0", cell) == _DIGITS.sub("0", mine)
    for cell, mine in pairs
  )


def _is_image_name(cell: str) -> bool:
  """Whether a cell can only be the name of an image."""
  name = cell.strip().strip('"')
  name = name.rpartition("#")[0] if "#" in name else name
  whole = len(name) < 1_024 and not any(c in name for c in "\t|")
  return whole and image_files.is_image(name)


def _without_header(file: str, cells: list[str]) -> list[str]:
  """Returns columns for rows such as IMAGE, CAPTION or IMAGE, NUMBER, CAPTION.

  Raises:
    UserError: it is not clear which is which.
  """
  columns = [
    "image" if _is_image_name(cell) else "number" if cell.isdigit() else None
    for cell in cells
  ]
  if columns.count("image") != 1 or columns.count(None) != 1:
    raise UserError(
      f"{file}: its first line must name the columns, such as image,caption;"
      f" it is: {', '.join(cells)[:200]}"
    )
  return [column or "caption" for column in columns]


def read_lines(text: str) -> list[tuple[int, Any]]:
  """Returns (line, what it holds) of JSON lines; None for what is no JSON."""
  found = []
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      try:
        found.append((number, json.loads(line)))
      except (ValueError, RecursionError):
        found.append((number, None))
  return found


def json_rows(
  file: str, found: list[tuple[int, Any]], unit: str = "line"
) -> Table:
  """Returns the table of (line, object) pairs, which need not be alike."""
  columns: dict[str, None] = {}
  for _, row in found:
    if isinstance(row, dict):
      columns |= dict.fromkeys(row)

  def rows() -> Iterator[Row]:
    for line, row in found:
      if isinstance(row, dict):
        yield Row(line, row)
      else:
        yield Row(line, {}, "is not a JSON object")

  return Table(file, tuple(columns), rows, unit=unit)


def _parquet(file: str, data: bytes) -> Table:
  with extras.needed_by(file):
    import pyarrow as pa
    import pyarrow.parquet as pq
  try:
    table = pq.read_table(io.BytesIO(data))
  except (pa.ArrowException, OSError, ValueError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(f"{file}: cannot be read as Parquet ({reason})") from error

  def rows() -> Iterator[Row]:
    number = 0
    for batch in table.to_batches(1_024):
      for row in to_rows(batch):
        number += 1
        problem = "" if row else "holds text that is no UTF-8"
        yield Row(number, row or {}, problem)

  return Table(file, tuple(table.column_names), rows, unit="row")


def names_images(file: str, head: bytes) -> bool:
  """Whether a table names images, seen from its first bytes.

  Its header has a column that is called so, or its second line names one.
  """
  text = head.decode("utf-8-sig", "ignore")
  if file.lower().endswith(LINES):
    first = text.lstrip().split("\n", 1)[0]
    try:
      row = json.loads(first)
    except (ValueError, RecursionError):
      return False
    names = row if isinstance(row, dict) else ()
    return any(str(name).lower() in IMAGE_NAMES for name in names)
  first = list(
    itertools.islice(delimited.read(text, _delimiter(file, text)), 2)
  )
  if not first or max(len(row.cells) for row in first) < 2:
    return False
  header = [cell.strip().lower() for cell in first[0].cells]
  return any(name in IMAGE_NAMES for name in header) or any(
    _is_image_name(cell) for row in first for cell in row.cells
  )
