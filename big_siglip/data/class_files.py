"""Names of classes, in the files and the texts that people keep them in.

A name a line; a JSON list or object; a table, of which one column has names and
others say what data call them; what torchvision, Keras and transformers write.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
import json
import re
from typing import Any

from big_siglip import shipped
from big_siglip.data import delimited
from big_siglip.data.class_names import ClassNames, is_number
from big_siglip.errors import UserError

# Columns of names, best first, and of what data sets call the classes.
_NAMES = (
  *("name", "names", "class_name", "classname", "label_name", "category_name"),
  *("text", "caption", "description", "class", "category", "label"),
)
_LABELS = (
  *("id", "label_id", "class_id", "category_id", "index", "idx", "number"),
  *("class_index", "class_idx", "target", "key", "wnid", "synset", "code"),
)
# Objects that hold the names beside other things.
_WRAPPERS = (
  *("id2label", "categories", "class_names", "classes", "names", "labels"),
)
_WORDNET = re.compile(r"n\d{8}")
_WORDNET_LINE = re.compile(r"(n\d{8})\s+(\S.*)")


def read(file: str, where: str) -> ClassNames:
  """Returns what a file says.

  Args:
    file: .csv and .tsv are tables, .json is JSON, .jsonl JSON a line; of all
      else `parse` decides.
    where: what messages call it.

  Raises:
    UserError: it cannot be read, or holds no names.
  """
  path = shipped.find(file)
  try:
    text = path.read_text("utf-8-sig")
    return parse(text, where, path.suffix.lower(), display=True)
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: must be UTF-8 text ({error})") from error
  except OSError as error:
    raise UserError(f"{where}: {error.strerror}") from error


def parse(
  text: str, where: str, suffix: str = "", *, display: bool = False
) -> ClassNames:
  """Returns what a text says.

  Without a suffix, a text that begins with a bracket is JSON; one with tabs in
  all lines, or with a header of known names, is a table; any other has a name a
  line.

  Args:
    text: of a file, or as it was typed.
    where: what messages call it.
    suffix: of the file.
    display: whether a list or dict may be as Python prints it. Not of texts by
      strangers: Python's parser can be made to crash.

  Raises:
    UserError: it holds no names, or what is no name.
  """
  try:
    found = _parse(text.strip("\ufeff\r\n"), suffix, display)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{where}: {_one_line(error)}") from error
  if not found.names:
    raise UserError(f"{where}: the list is empty")
  return found


def _parse(text: str, suffix: str, display: bool) -> ClassNames:
  if suffix in (".yaml", ".yml", ".xlsx", ".xls", ".parquet"):
    raise ValueError(
      f"{suffix} is not read: must be text with a name a line, a table (.csv, "
      ".tsv) or JSON"
    )
  if suffix in (".csv", ".tsv"):
    return _table(text, "\t" if suffix == ".tsv" else _delimiter(text))
  if suffix == ".jsonl":
    return _from_json([_load(line) for line in text.splitlines() if line])
  if suffix == ".json" or text.lstrip().startswith(("{", "[")):
    return _from_json(_load(text, display))
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if lines and all("\t" in line for line in lines):
    return _table(text, "\t")
  for delimiter in ",;":
    if len(cells := _header(lines, delimiter)) > 1 and all(map(_known, cells)):
      return _table(text, delimiter)
  ids = [found for x in lines if (found := _WORDNET_LINE.fullmatch(x))]
  if lines and len(ids) == len(lines):
    return _made([(i[2],) for i in ids], [[i[1] for i in ids]])
  return _made([(line,) for line in lines])


def _load(text: str, display: bool = False) -> Any:
  try:
    return json.loads(text, object_pairs_hook=_no_twice)
  except json.JSONDecodeError as error:
    if not display:
      raise ValueError(f"cannot be read as JSON ({error})") from error
    try:  # As Python prints it, {0: 'tench', ...}.
      return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError):
      raise ValueError(f"cannot be read as JSON ({error})") from error


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  _check_once([key for key, _ in pairs])
  return dict(pairs)


def _check_once(labels: Sequence[str]) -> None:
  seen = set()
  for label in labels:
    if label in seen:
      raise ValueError(f"label {label!r} stands there twice")
    seen.add(label)


def _from_json(content: Any) -> ClassNames:
  if isinstance(content, Mapping):
    return _from_object(content)
  if not isinstance(content, list | tuple):
    raise ValueError("must be a list of names, or an object {label: name}")
  if content and all(isinstance(entry, Mapping) for entry in content):
    columns = list(dict.fromkeys(key for entry in content for key in entry))
    rows = [
      [_cell(entry.get(column)) for column in columns] for entry in content
    ]
    return _from_columns(columns, rows)
  return _made([_names(entry) for entry in content])


def _from_object(content: Mapping[Any, Any]) -> ClassNames:
  for key in _WRAPPERS:
    inner = content.get(key)
    if isinstance(inner, list | dict) and (
      len(content) == 1 or key in ("id2label", "categories")
    ):
      return _from_json(inner)
  keys, values = [str(key) for key in content], list(content.values())
  if values and all(type(value) is int for value in values):
    # {name: number}, as torchvision's class_to_idx.
    order = sorted(range(len(keys)), key=values.__getitem__)
    numbers = [str(values[i]) for i in order]
    _check_once(numbers)
    return _made([_names(keys[i]) for i in order], [numbers])
  if values and all(map(_is_keras, values)):
    ids, names = zip(*values, strict=True)
    return _made([(name.replace("_", " "),) for name in names], [keys, ids])
  return _made([_names(entry) for entry in values], [keys])


def _is_keras(value: Any) -> bool:
  """Returns whether an entry is Keras's ["n01440764", "tench"]."""
  return (
    isinstance(value, list)
    and len(value) == 2
    and all(isinstance(part, str) for part in value)
    and bool(_WORDNET.fullmatch(value[0]))
  )


def _names(entry: Any) -> tuple[str, ...]:
  names = (entry,) if isinstance(entry, str) else entry
  good = isinstance(names, list | tuple) and len(names) > 0
  if not good or not all(isinstance(n, str) and n.strip() for n in names):
    raise ValueError(f"{entry!r} must be a name or a list of names")
  return tuple(name.strip() for name in names)


def _made(
  names: Iterable[tuple[str, ...]], labels: Iterable[Sequence[str]] = ()
) -> ClassNames:
  return ClassNames(tuple(names), tuple(map(tuple, labels)))


def _delimiter(text: str) -> str:
  """Returns what parts the cells of a .csv file: some write semicolons."""
  first = text.partition("\n")[0]
  return max(",;\t", key=first.count)


def _header(lines: Sequence[str], delimiter: str) -> list[str]:
  cells = lines[0].split(delimiter) if lines else []
  return [cell.strip().strip('"') for cell in cells]


def _known(cell: str) -> bool:
  return cell.strip().lower() in (*_NAMES, *_LABELS)


def _table(text: str, delimiter: str) -> ClassNames:
  rows = []
  for row in delimited.read(text, delimiter):
    cells = [cell.strip() for cell in row.cells]
    if not any(cells):
      continue
    if row.problem:
      raise ValueError(f"line {row.line}: {row.problem}")
    if rows and len(cells) != len(rows[0]):
      raise ValueError(
        f"line {row.line}: has {len(cells)} cells, the first line "
        f"{len(rows[0])}; quote names that hold a {delimiter!r}"
      )
    rows.append(cells)
  if not rows:
    return ClassNames(())
  first, rest = rows[0], rows[1:]
  numbered = rest and any(
    not is_number(cell) and all(is_number(row[i]) for row in rest)
    for i, cell in enumerate(first)
  )
  if any(map(_known, first)) or numbered:
    return _from_columns(first, rest)
  return _from_columns([""] * len(first), rows)


def _from_columns(
  columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> ClassNames:
  """Returns the column that has names, and what tells classes apart."""
  if not rows:
    return ClassNames(())
  cells = list(zip(*rows, strict=True))
  named = [i for i, column in enumerate(cells) if not _is_code(column)]
  order = [column.strip().lower() for column in columns]
  known = sorted(
    (i for i in named if order[i] in _NAMES),
    key=lambda i: _NAMES.index(order[i]),
  )
  if not known and len(named) > 1:
    known = named[-1:] if not any(columns) else []
  chosen = (known or named or [None])[0]
  if chosen is None or (not known and len(named) > 1):
    raise ValueError(
      f"must have a column {_NAMES[0]!r}; it has {', '.join(columns) or 'none'}"
    )
  for number, row in enumerate(rows, 1):
    if not row[chosen]:
      raise ValueError(f"row {number}: has no name")
  labels = [
    column
    for i, column in enumerate(cells)
    if i != chosen and all(column) and len(set(column)) == len(column)
  ]
  return _made([(row[chosen],) for row in rows], labels)


def _is_code(column: Sequence[str]) -> bool:
  """Returns whether these are numbers or WordNet ids, and no names."""
  return all(is_number(cell) or _WORDNET.fullmatch(cell) for cell in column)


def _cell(value: Any) -> str:
  return "" if value is None else str(value).strip()


def _one_line(error: Exception) -> str:
  if isinstance(error, RecursionError):
    return "is nested too deeply"
  return str(error).splitlines()[0]
