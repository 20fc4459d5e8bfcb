"""Parquet files with image bytes in them, as on the Hugging Face Hub."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
import concurrent.futures
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from big_siglip.data.class_names import sort_labels
from big_siglip.data.faults import Fault
from big_siglip.data.sources import parquet_columns
from big_siglip.data.sources.array_records import check_faults
from big_siglip.data.sources.example import (
  column,
  NAME_NAMES,
  Options,
  Record,
  require_fields,
)
from big_siglip.data.sources.nested import dig
from big_siglip.data.sources.splits import choose_files
from big_siglip.data.sources.storage import Storage
from big_siglip.data.sources.stored_images import as_image, read_beside
from big_siglip.data.tables import to_rows
from big_siglip.errors import BadExample, UserError

# Row groups are kept in memory up to so many bytes, in each process.
CACHE_BYTES = 2**28
_SAMPLE = 16  # Rows that tell whether texts hold images.
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
    self.where = f"the Parquet files {path}"
    self._storage = Storage(options.retry_seconds)
    files = self._storage.expand(path, (".parquet",))
    files = choose_files(files, split, path, "Parquet files")
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
    kinds = dict(parquet_columns.flatten(schema))
    self.field_names = tuple(kinds)
    # From a field to the column that holds it.
    self._known = {
      key: key if key in schema.names else key.split("/")[0] for key in kinds
    }
    self.image_key = options.image_key or parquet_columns.find_image(
      kinds, self._head, self.where
    )
    classes = parquet_columns.class_names(schema)
    own = (key for key in classes if "/" not in key)
    self.label_key = options.label_key or next(own, None)
    self.further_names = {k: classes[k] for k in options.fields if k in classes}
    texts = tuple(options.text_weights)
    if not self.label_key and not texts:
      self.label_key = parquet_columns.find_label(kinds, self.image_key)
    self.class_names = classes.get(self.label_key)
    self.text_keys = texts or parquet_columns.find_texts(
      kinds,
      self.image_key,
      self.label_key,
      self.class_names,
      self.where,
      options,
    )
    names = (n for n in NAME_NAMES if n in kinds and n not in self.text_keys)
    self._name_key = next(names, None)
    require_fields(self, kinds, options.fields)
    keys = (self.image_key, *self.text_keys, self.label_key, *options.fields)
    self._keys = tuple(key for key in keys if key)
    wanted = {*self._keys, self._name_key}
    self._columns = sorted({self._known[key] for key in wanted if key})
    if self.label_key and not self.class_names:
      self.class_names = self._read_class_names(kinds[self.label_key])

  def _head(self, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Returns some fields of the first rows."""
    columns = sorted({self._known[key] for key in keys})
    try:
      rows = self._use(
        self._files[0],
        lambda file: to_rows(next(file.iter_batches(_SAMPLE, columns=columns))),
      )
    except (BadExample, StopIteration):  # It will be met when it is read.
      return []
    return [row for row in rows if row]

  def _read_class_names(self, kind: pa.DataType) -> tuple[str, ...] | None:
    """Returns all words that labels are, in order; None: they are numbers."""
    if not parquet_columns.is_text(kind):
      return None
    labels = self.columns([self.label_key])[self.label_key]
    words = {str(label) for label in labels if label not in (None, "")}
    if all(word.lstrip("-").isdigit() for word in words):
      return None
    return sort_labels(words)

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
    file = self._files[self._groups[group, 0]]
    if name is None:
      name = f"{file}#{row}"
    fields = {k: dig(values, k) for k in self._keys}
    try:
      fields[self.image_key] = as_image(
        image, lambda path: read_beside(path, file, self._storage)
      )
    except BadExample as error:
      error.name = error.name or str(name)
      raise
    return Record(str(name), fields)

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
