"""Parquet files with image bytes in them, as on the Hugging Face Hub."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
import concurrent.futures
import json
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from big_siglip.data.faults import Fault
from big_siglip.data.sources.array_records import check_faults, require_all
from big_siglip.data.sources.example import (
  choose,
  choose_text,
  column,
  dig,
  NAME_NAMES,
  Options,
  Record,
  require_fields,
  TEXT_NAMES,
)
from big_siglip.data.sources.storage import Storage
from big_siglip.data.tables import to_rows
from big_siglip.errors import BadExample, UserError

# Row groups are kept in memory up to so many bytes, in each process.
CACHE_BYTES = 2**28
_THREADS = 16  # That read the files' ends, where their tables stand.
# What pyarrow raises for bytes that are no Parquet, apart from OSError.
_DAMAGED = (pa.ArrowException, ValueError)


class ParquetRecords:
  """The rows of Parquet files; see `example.Records`.

  Rows are stored in groups that can only be decoded whole; the last few groups
  are kept. Fields of nested columns have names such as "json/width".
  """

  def __init__(self, path: str, split: str, options: Options):
    """Reads the tables at the files' ends.

    Raises:
      UserError: there is no file, too many are missing or damaged, or the
        columns do not tell what they are.
    """
    require_all(split, "Parquet files")
    self.where = f"the Parquet files {path}"
    self._storage = Storage(options.retry_seconds)
    files = self._storage.expand(path, (".parquet",))
    self._files, groups, faults, schema = [], [], [], None
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for file, found in zip(files, pool.map(self._look, files), strict=True):
        if isinstance(found, BadExample):
          faults.append(Fault.of(-1, file, found))
          continue
        metadata, found_schema = found
        schema = schema or found_schema
        number = len(self._files)
        self._files.append(file)
        groups += [
          (number, g, metadata.row_group(g).num_rows)
          for g in range(metadata.num_row_groups)
        ]
    self.faults = tuple(faults)
    check_faults(path, faults, len(files), options.max_skipped)
    self._groups = np.array(groups, np.int64).reshape(-1, 3)
    self._ends = np.cumsum(self._groups[:, 2])
    if not len(self):
      raise UserError(f"{self.where}: the data set is empty")
    self._choose_keys(schema, options)
    self._cache = _Cache()

  def _look(self, file: str):
    """Returns the metadata and schema of a file, or what is wrong with it."""
    try:
      return self._use(
        file, lambda opened: (opened.metadata, opened.schema_arrow)
      )
    except BadExample as error:
      return error

  def _use(self, file: str, use: Callable[[pq.ParquetFile], Any]) -> Any:
    """Returns what `use` makes of an open file.

    Raises:
      BadExample: it is damaged, missing or not reached.
    """

    def attempt() -> Any:
      with self._storage.open(file) as handle:
        try:
          return use(pq.ParquetFile(handle))
        except _DAMAGED as error:
          raise BadExample(_short(error), "record", file) from error
        except OSError as error:
          # pyarrow's own, of bytes that it cannot decode, have no number.
          if type(error) is OSError and error.errno is None:
            raise BadExample(_short(error), "record", file) from error
          raise

    return self._storage.call(file, attempt)

  def _choose_keys(self, schema: pa.Schema, options: Options) -> None:
    kinds = dict(_flatten(schema))
    self.field_names = tuple(kinds)
    images = [k for k, t in kinds.items() if _is_image(t)]
    texts = [k for k, t in kinds.items() if _is_text(t)]
    self.image_key = options.image_key or choose(
      "image_key", images, ("image", "jpg", "jpeg", "png", "webp"), self.where
    )
    classes = _class_names(schema)
    self.label_key = options.label_key or next(iter(classes), None)
    self.class_names = classes.get(self.label_key)
    self.text_keys = tuple(options.text_weights)
    if not self.text_keys:
      inner = f"{self.image_key}/"  # The path beside the bytes.
      texts = [
        k
        for k in texts
        if k not in NAME_NAMES and "url" not in k and not k.startswith(inner)
      ]
      if self.class_names and not set(texts) & set(TEXT_NAMES):
        texts = [self.label_key]
      self.text_keys = choose_text(options, texts, TEXT_NAMES, self.where)
    names = (n for n in NAME_NAMES if n in kinds and n not in self.text_keys)
    self._name_key = next(names, None)
    require_fields(self, kinds, options.fields)
    keys = (self.image_key, *self.text_keys, self.label_key, *options.fields)
    self._keys = tuple(key for key in keys if key)
    wanted = {*self._keys, self._name_key}
    # From a field to the column that holds it.
    self._known = {
      key: key if key in schema.names else key.split("/")[0] for key in kinds
    }
    self._columns = sorted({self._known[key] for key in wanted if key})

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def read(self, index: int) -> Record:
    """Returns a row; decodes its whole group; see `example.Records`."""
    group = int(np.searchsorted(self._ends, index, side="right"))
    row = index - int(self._ends[group] - self._groups[group, 2])
    table = self._cache.get(group, self._read_group)
    present = [name for name in self._columns if name in table.column_names]
    try:
      values = {name: table[name][row].as_py() for name in present}
    except UnicodeDecodeError as error:
      place = f"{self._files[self._groups[group, 0]]}#{row}"
      raise BadExample(
        "holds text that is no UTF-8", "record", place
      ) from error
    name = dig(values, self._name_key) if self._name_key else None
    image = dig(values, self.image_key)
    if name is None and isinstance(image, dict):
      name = image.get("path")
    if name is None:
      name = f"{self._files[self._groups[group, 0]]}#{row}"
    return Record(str(name), {k: dig(values, k) for k in self._keys})

  def _read_group(self, group: int) -> pa.Table:
    number, place, _ = (int(n) for n in self._groups[group])
    file = self._files[number]

    try:
      return self._use(
        file,
        lambda opened: opened.read_row_group(
          place, self._columns, use_threads=False
        ),
      )
    except BadExample as error:
      error.name = f"{file}, row group {place}"
      raise

  def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns fields of all records, without reading images."""
    known = [key for key in keys if key in self._known]
    values = {key: [] for key in keys}
    for file in range(len(self._files)):
      total = int(self._groups[self._groups[:, 0] == file, 2].sum())
      rows = [{}] * total
      if known:
        rows = self._read_columns(self._files[file], known, total)
      for row in rows:
        for key in keys:
          values[key].append(dig(row, key))
    return {key: column(found) for key, found in values.items()}

  def _read_columns(self, file: str, keys, total: int) -> list[dict[str, Any]]:
    names = sorted({self._known[key] for key in keys})
    try:
      rows = self._use(file, lambda opened: to_rows(opened.read(names)))
    except BadExample:  # It will be met when it is read.
      return [{}] * total
    return [row or {} for row in rows]


class _Cache:
  """The row groups that were used last; a group is read by one thread."""

  def __init__(self):
    self._tables: OrderedDict[int, pa.Table] = OrderedDict()
    self._locks: dict[int, threading.Lock] = {}
    self._lock = threading.Lock()

  def get(self, group: int, read) -> pa.Table:
    with self._lock:
      lock = self._locks.setdefault(group, threading.Lock())
    with lock:
      with self._lock:
        if group in self._tables:
          self._tables.move_to_end(group)
          return self._tables[group]
      table = read(group)
      with self._lock:
        self._tables[group] = table
        while len(self._tables) > 1 and self._bytes() > CACHE_BYTES:
          self._tables.popitem(last=False)
      return table

  def _bytes(self) -> int:
    return sum(table.nbytes for table in self._tables.values())

  def __reduce__(self):  # A worker starts with none.
    return _Cache, ()


def _short(error: Exception) -> str:
  return f"no whole Parquet: {str(error).strip().splitlines()[0]}"


def _flatten(fields, prefix: str = ""):
  """Yields the type of every column by path, parents of nested ones too."""
  for field in fields:
    kind = field.type
    yield f"{prefix}{field.name}", kind
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
      kind = kind.value_type
    if pa.types.is_struct(kind):
      yield from _flatten(kind.fields, f"{prefix}{field.name}/")


def _is_image(kind: pa.DataType) -> bool:
  if pa.types.is_struct(kind):
    return "bytes" in [f.name for f in kind.fields] and _is_binary(
      kind.field("bytes").type
    )
  return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
  return (
    pa.types.is_binary(kind)
    or pa.types.is_large_binary(kind)
    or pa.types.is_binary_view(kind)
  )


def _is_text(kind: pa.DataType) -> bool:
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    kind = kind.value_type
  if pa.types.is_dictionary(kind):  # What pandas calls categories.
    kind = kind.value_type
  return (
    pa.types.is_string(kind)
    or pa.types.is_large_string(kind)
    or pa.types.is_string_view(kind)
  )


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
  """Returns what `datasets` wrote of the labels it knows."""
  try:
    text = (schema.metadata or {})[b"huggingface"]
    features = json.loads(text)["info"]["features"]
  except (KeyError, ValueError, TypeError):
    return {}
  return {
    name: tuple(feature["names"])
    for name, feature in features.items()
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
  }
