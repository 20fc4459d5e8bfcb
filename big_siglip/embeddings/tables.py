"""Lists and tables of images or texts: a row each, and its other columns."""

from collections.abc import Iterator, Mapping, Sequence
import json
import pathlib
from typing import Any, NamedTuple

from big_siglip.data import delimited
from big_siglip.data.sources.folder.tables import problem_of
from big_siglip.errors import UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_DELIMITERS, ".jsonl")


class Row(NamedTuple):
  """One row of a table, or one line of a list.

  Attributes:
    line: its number, from 1.
    text: what stands in the column that is meant.
    others: what stands in the others, by their names; texts, or of JSON.
  """

  line: int
  text: str
  others: Mapping[str, Any]


def read(
  file: pathlib.Path, column: str | None, usual: Sequence[str], flag: str
) -> list[tuple[int, str]]:
  """Returns (number of the line, text) of each row; see `read_rows`."""
  return [(row.line, row.text) for row in read_rows(file, column, usual, flag)]


def read_rows(
  file: pathlib.Path, column: str | None, usual: Sequence[str], flag: str
) -> list[Row]:
  """Returns the rows of a table or the lines of a list.

  Args:
    file: a table (.csv, .tsv, .jsonl), or a text in each line.
    column: of the table; None: the first of `usual` that it has.
    usual: names of columns.
    flag: what messages call the file.

  Raises:
    UserError: it cannot be read, or has no such column.
  """
  suffix = file.suffix.lower()
  if suffix not in SUFFIXES:
    check_no_column(file, column)
  if file.is_dir():
    raise UserError(f"{flag}={file}: is a folder, must be a file")
  names = [column] if column else list(usual)
  try:
    newline = "" if suffix in _DELIMITERS else None
    with file.open(encoding="utf-8-sig", newline=newline) as lines:
      if suffix in _DELIMITERS:
        text, delimiter = lines.read(), _DELIMITERS[suffix]
        return list(_column(text, delimiter, file, names))
      if suffix == ".jsonl":
        return list(_field(lines, file, names))
      # Not splitlines, which also splits at rare separators within a line.
      return [Row(i, line.rstrip("\n"), {}) for i, line in enumerate(lines, 1)]
  except UnicodeDecodeError as error:
    raise UserError(f"{flag}={file}: must be UTF-8 text ({error})") from error
  except OSError as error:
    raise UserError(f"{flag}={file}: {error.strerror}") from error


def columns_of(rows: Sequence[Row], reserved: Sequence[str]) -> dict[str, list]:
  """Returns the other columns of a table, each of values of one type.

  Numbers are read where all of a column are some; what is empty is None. What
  JSON has as a list or an object is its text.

  Args:
    rows: all of them.
    reserved: names that no column may have, which is left out then.
  """
  names = dict.fromkeys(name for row in rows for name in row.others)
  return {
    name: _typed([row.others.get(name) for row in rows])
    for name in names
    if name and name not in reserved
  }


def _typed(values: list[Any]) -> list[Any]:
  """Returns them as whole numbers, numbers, truth values or texts."""
  there = [v for v in values if v is not None and v != ""]
  if there and all(isinstance(v, bool) for v in there):
    return [v if isinstance(v, bool) else None for v in values]
  for kind in (_whole, _number):
    try:
      return [None if v is None or v == "" else kind(v) for v in values]
    except (ValueError, OverflowError):
      continue
  return [None if v is None or v == "" else _text(v) for v in values]


def _whole(value: Any) -> int:
  if isinstance(value, bool | float) or not _is_plain(value):
    raise ValueError
  number = int(value)
  if not -(2**63) <= number < 2**63:
    raise ValueError
  return number


def _number(value: Any) -> float:
  if isinstance(value, bool) or not _is_plain(value):
    raise ValueError
  return float(value)


def _is_plain(value: Any) -> bool:
  """Whether it is a number and no name: no 007, 1_000 or infinity."""
  text = str(value).strip().lstrip("+-")
  if not text[:1].isdigit() and not text.startswith("."):
    return False
  return "_" not in text and not (text[0] == "0" and text[1:2].isdigit())


def _text(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  # JSON may hold halves of characters, which Parquet's UTF-8 has not.
  return text.encode(errors="replace").decode()


def check_no_column(place: pathlib.Path, column: str | None) -> None:
  """Raises a `UserError` if a column is named of what has none."""
  if column is not None:
    raise UserError(
      f"--column={column}: {place} is no {', '.join(SUFFIXES[:-1])} or "
      f"{SUFFIXES[-1]} file"
    )


def _choose(
  names: Sequence[str], present: Sequence[str], file: pathlib.Path
) -> str:
  found = [name for name in names if name in present]
  if not found:
    raise UserError(
      f"{file}: has no column {names[0]!r}; --column must be one of "
      f"{', '.join(present) or 'none'}"
    )
  return found[0]


def _column(
  text: str, delimiter: str, file: pathlib.Path, names: Sequence[str]
) -> Iterator[Row]:
  rows = delimited.read(text, delimiter)
  head = next(rows, None)
  present = [name.strip() for name in head.cells] if head else []
  place = present.index(_choose(names, present, file))
  for row in rows:
    last = row.line + len(row.swallowed)
    if problem := problem_of(row, delimiter):
      raise UserError(f"{file}: line {row.line}: {problem}")
    # Of two columns of one name the first is meant; a short row lacks some.
    others = dict(
      zip(present[::-1], _filled(row.cells, present)[::-1], strict=True)
    )
    yield Row(last, others.pop(present[place]), others)


def _filled(cells: list[str], present: Sequence[str]) -> list[str]:
  return [*cells, *[""] * (len(present) - len(cells))][: len(present)]


def _field(
  lines: Iterator[str], file: pathlib.Path, names: Sequence[str]
) -> Iterator[Row]:
  column = None
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    if not isinstance(row, dict):
      raise UserError(f"{file}: line {number} is no JSON object")
    column = column or _choose(names, list(row), file)
    found = row.pop(column, None)
    for text in found if isinstance(found, list) else [found]:
      yield Row(number, _text(text) if isinstance(text, str) else "", row)
