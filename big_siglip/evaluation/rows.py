"""Rows of an evaluation in a file: CSV, Parquet or JSON lines, by its name."""

from collections.abc import Callable, Mapping, Sequence
import csv
import io
import itertools
import json
from typing import Any, BinaryIO

from etils import epath
import numpy as np

from big_siglip import extras
from big_siglip.data.tables import allow_long_fields
from big_siglip.errors import UserError
from big_siglip.evaluators.result import Table
from big_siglip.evaluators.scores import classified, plain, recalls, Score
from big_siglip.evaluators.tables import BETWEEN

_WHOLE = ("row", "rank", "label_rank", "group")
_REAL = (
  *("score", "probability", "label_score", "right_score", "similarity"),
  *("miou", "pck"),
)


def write(file: epath.Path, table: Mapping[str, Sequence[Any]]) -> None:
  """Writes a table; nobody sees it half written.

  Raises:
    UserError: the file cannot be written.
  """
  ending = file.suffix.lower()
  table = {k: list(map(_writable, values)) for k, values in table.items()}
  stream = io.BytesIO()
  if ending == ".parquet":
    _write_parquet(stream, table)
  else:
    rows = zip(*table.values(), strict=True)
    text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
    if ending == ".jsonl":
      for row in rows:
        line = dict(zip(table, row, strict=True))
        text.write(json.dumps(line, ensure_ascii=False) + "\n")
    else:
      writer = csv.writer(text, lineterminator="\n")
      writer.writerow(table)
      writer.writerows(map(_said, row) for row in rows)
    text.detach()
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(stream.getvalue())
    partial.replace(file)
  except OSError as error:
    raise UserError(f"{file}: not writable ({error.strerror})") from error


def read(file: epath.Path) -> Table:
  """Returns the table of a file that `write` made.

  Raises:
    UserError: it cannot be read, or holds other things.
  """
  try:
    data = file.read_bytes()
    table = _parse(data, file.suffix.lower())
  except OSError as error:
    raise UserError(f"{file}: cannot be read ({error.strerror})") from error
  except UserError:
    raise
  except (ValueError, TypeError, KeyError, csv.Error) as error:
    reason = (str(error).strip().splitlines() or ["damaged"])[0]
    raise UserError(f"{file}: holds no rows ({reason})") from error
  needed = ("way", "query", "rank") if "way" in table else ("right", "label")
  lacking = [name for name in ("key", *needed) if name not in table]
  if lacking:
    raise UserError(
      f"{file}: holds no rows of an evaluation: there is no column "
      f"{', '.join(lacking)}"
    )
  return table


def scores(table: Table) -> dict[str, Score]:
  """Returns the metrics of rows that were measured: see `measured`.

  An image's number is that of its key among all keys in order.
  """
  if not is_retrieval(table):
    return _classification(table)
  _, image = np.unique(table["key"], return_inverse=True)
  count = len(image)
  return recalls(
    np.array(table["way"]),
    np.array(table.get("language", [""] * count)),
    image,
    _ranks(table["rank"]),
  )


def is_retrieval(table: Table) -> bool:
  """Returns whether rows are queries; else they are images."""
  return "way" in table


def measured(table: Table) -> list[int]:
  """Returns the places of the rows that are part of the metrics."""
  if is_retrieval(table):
    return list(range(len(table["key"])))
  return [i for i, right in enumerate(table["right"]) if right is not None]


def take(table: Table, places: Sequence[int]) -> Table:
  """Returns some rows."""
  return {k: [values[i] for i in places] for k, values in table.items()}


def _classification(table: Table) -> dict[str, Score]:
  right = np.array(table["right"], bool)
  if "label_rank" not in table:  # A probe's.
    return {"accuracy": plain(right)}
  labels = [label.split(BETWEEN) for label in table["label"]]
  names = dict.fromkeys(itertools.chain.from_iterable(labels))
  number = {name: i for i, name in enumerate(names)}
  answers = np.full((len(labels), max(map(len, labels), default=1)), -1)
  for row, own in zip(answers, labels, strict=True):
    row[: len(own)] = [number[name] for name in own]
  return classified(right, _ranks(table["label_rank"]), answers)


def _ranks(values: Sequence[int | None]) -> np.ndarray:
  return np.array([np.inf if v is None else v for v in values], np.float64)


def _parse(data: bytes, ending: str) -> Table:
  if ending == ".parquet":
    return _read_parquet(data)
  text = data.decode("utf-8-sig")
  if ending == ".jsonl":
    lines = [json.loads(line) for line in text.split("\n") if line.strip()]
    return {k: [line[k] for line in lines] for k in (lines[0] if lines else ())}
  allow_long_fields()
  head, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
  columns = zip(*rows, strict=True) if rows else ([] for _ in head)
  return {
    name: list(map(_reader(name), column))
    for name, column in zip(head, columns, strict=True)
  }


def _said(value: Any) -> Any:
  return str(value).lower() if isinstance(value, bool) else value


def _writable(value: Any) -> Any:
  """Returns text without what UTF-8 has not, as names of files may hold."""
  if isinstance(value, str):
    return value.encode("utf-8", "backslashreplace").decode()
  return value


def _type(name: str) -> type:
  base = name.partition("@")[0]
  if base == "right":
    return bool
  if name in _WHOLE:
    return int
  return float if base in _REAL else str


def _write_parquet(stream: BinaryIO, table: Mapping[str, Sequence]) -> None:
  with extras.needed_by("a .parquet file"):
    import pyarrow as pa
    from pyarrow import parquet

  types = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
  }
  columns = {k: pa.array(v, types[_type(k)]) for k, v in table.items()}
  parquet.write_table(pa.table(columns), stream)


def _read_parquet(data: bytes) -> Table:
  with extras.needed_by("a .parquet file"):
    import pyarrow as pa
    from pyarrow import parquet

  try:
    return parquet.read_table(io.BytesIO(data)).to_pydict()
  except pa.ArrowException as error:
    raise ValueError(str(error)) from error


def _reader(name: str) -> Callable[[str], Any]:
  """Returns what makes a value of the text of a CSV file."""
  kind = _type(name)
  if kind is bool:
    return lambda text: _read_bool(text) if text else None
  if kind is str:
    return lambda text: text or None
  return lambda text: kind(text) if text else None


def _read_bool(text: str) -> bool:
  return {"true": True, "false": False}[text.lower()]
