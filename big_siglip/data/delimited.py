"""Rows of tables whose cells a sign parts, as people and programs write them.

The csv module takes a quote mark at the start of a cell for one that another
closes, however far away, and never says that it found none. Here a cell is
quoted if the mark that closes it stands at the cell's end.
"""

from collections.abc import Iterator
import dataclasses
import functools
import re

_LINE_END = re.compile(r"\r\n|\r|\n")
DELIMITERS = ("\t", ",", "|", ";")
_ESCAPED = re.compile(r'""|\\(["\\])')
_OPEN = "a quote before its text is never closed; write quotes in texts twice"


@dataclasses.dataclass(frozen=True)
class Cells:
  """A row.

  Attributes:
    line: the number of the line it starts in, from 1.
    cells: its texts.
    swallowed: lines that its quoted cells go on over, after their first.
    problem: what is wrong with it.
  """

  line: int
  cells: list[str]
  swallowed: tuple[str, ...] = ()
  problem: str = ""


def read(text: str, delimiter: str) -> Iterator[Cells]:
  r"""Yields the rows of a table, but none for its empty lines.

  A cell is quoted where a mark opens it and closes it before the delimiter or
  the line's end. Marks within are doubled; after a backslash or alone where
  nothing else fits. A backslash before a mark goes, in any cell. Where tabs
  part the cells, as a rule nothing is quoted: a mark is a letter if the quoted
  cell would not end, or hold whole rows.

  Args:
    text: of the whole table.
    delimiter: one of ",", "\t", "|" and ";".
  """
  position, line = 0, 1
  while position < len(text):
    end = _LINE_END.search(text, position)
    stop = end.start() if end else len(text)
    if text.find('"', position, stop) >= 0:
      row, position = _quoted_row(text, position, line, delimiter)
      line += len(row.swallowed)
    else:
      row = Cells(line, text[position:stop].split(delimiter))
      position = end.end() if end else stop
    line += 1
    if any(row.cells):
      yield row


def _quoted_row(
  text: str, position: int, line: int, delimiter: str
) -> tuple[Cells, int]:
  """Returns a row that has quotes, and where the next one starts."""
  cells, swallowed, problem = [], (), ""
  while True:
    found = _quoted_cell(text, position, delimiter)
    if found:
      cell, lines, position = found
      swallowed += lines
    else:
      match = _bare(delimiter).match(text, position)
      cell, position = match[0], match.end()
      bare = cell.strip()
      if len(bare) > 1 and bare[0] == bare[-1] == '"':
        cell = bare[1:-1]
      elif delimiter != "\t" and bare[:1] == '"' and bare.count('"') % 2:
        problem = _OPEN
      cell = cell.replace('\\"', '"')
    cells.append(cell)
    if text[position : position + 1] != delimiter:
      break
    position += 1
  end = _LINE_END.match(text, position)
  return (
    Cells(line, cells, swallowed, problem),
    end.end() if end else position,
  )


def _quoted_cell(
  text: str, position: int, delimiter: str
) -> tuple[str, tuple[str, ...], int] | None:
  """Returns a text in quotes, its lines after the first, and its end."""
  doubled, escaped = _quoted(delimiter)
  match = doubled.match(text, position)
  value = match and match[1].replace('""', '"')
  if not match or _LINE_END.search(match[1]):
    other = escaped.match(text, position)
    if other and not (match and _LINE_END.search(other[1])):
      match, value = other, _ESCAPED.sub(lambda m: m[1] or '"', other[1])
  if not match:
    return None
  lines = tuple(_LINE_END.split(match[1])[1:])
  if lines and delimiter == "\t":
    head = _LINE_END.search(text)
    columns = text.count("\t", 0, head.start() if head else len(text))
    if any(line.count("\t") >= columns for line in lines):
      return None
  return value, lines, match.end()


@functools.cache
def _quoted(delimiter: str) -> tuple[re.Pattern, re.Pattern]:
  """Returns what matches cells whose marks are doubled, or have backslashes."""
  end = rf'" *(?={re.escape(delimiter)}|\r|\n|\Z)'
  return (
    re.compile(rf' *"([^"]*+(?:""[^"]*+)*+){end}'),
    re.compile(rf' *"((?:[^"\\]++|\\.|"")*+){end}', re.DOTALL),
  )


@functools.cache
def _bare(delimiter: str) -> re.Pattern:
  return re.compile(rf"[^{re.escape(delimiter)}\r\n]*")
