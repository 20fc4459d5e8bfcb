"""Lists and tables of images or texts: a row each."""

from collections.abc import Iterator, Sequence
import json
import pathlib

from big_siglip.data import delimited
from big_siglip.data.sources.folder.tables import problem_of
from big_siglip.errors import UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_DELIMITERS, ".jsonl")


def read(
  file: pathlib.Path, column: str | None, usual: Sequence[str], flag: str
) -> list[tuple[int, str]]:
  """Returns (number of the line, text) of each row.

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
      return [(i, line.rstrip("\n")) for i, line in enumerate(lines, 1)]
  except UnicodeDecodeError as error:
    raise UserError(f"{flag}={file}: must be UTF-8 text ({error})") from error
  except OSError as error:
    raise UserError(f"{flag}={file}: {error.strerror}") from error


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
) -> Iterator[tuple[int, str]]:
  rows = delimited.read(text, delimiter)
  head = next(rows, None)
  present = [name.strip() for name in head.cells] if head else []
  place = present.index(_choose(names, present, file))
  for row in rows:
    last = row.line + len(row.swallowed)
    if problem := problem_of(row, delimiter):
      raise UserError(f"{file}: line {row.line}: {problem}")
    yield last, row.cells[place] if place < len(row.cells) else ""


def _field(
  lines: Iterator[str], file: pathlib.Path, names: Sequence[str]
) -> Iterator[tuple[int, str]]:
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
    found = row.get(column)
    for text in found if isinstance(found, list) else [found]:
      yield number, text if isinstance(text, str) else ""
