"""ArrayRecord files: shards of records that can be read by number.

A damaged record costs itself; a shard whose end is missing costs the shard, for
the table of its records stands there.
"""

from collections.abc import Sequence
import dataclasses
import functools
import threading

from array_record.python import array_record_module
import numpy as np

from big_siglip import extras
from big_siglip.data.faults import Fault
from big_siglip.data.image_files import looks_like_image
from big_siglip.data.sources.example import (
  choose,
  choose_text,
  column,
  NAME_NAMES,
  Options,
  Record,
  require_fields,
  TEXT_NAMES,
)
from big_siglip.data.sources.splits import choose_files
from big_siglip.data.sources.storage import Storage
from big_siglip.errors import BadExample, UserError

# Of files, and of shards such as photos-train.array_record-00000-of-00010.
_SUFFIXES = (".array_record", ".arrayrecord", "array_record-*-of-*")


@dataclasses.dataclass(frozen=True)
class Shard:
  """A part of a file: `take` records after `skip`."""

  path: str
  skip: int
  take: int


class ArrayRecords:
  """The bytes of the records of several shards; opened when first read.

  A remote shard is copied whole into the cache folder when it is first read:
  the library reads local files alone.
  """

  def __init__(self, shards: Sequence[Shard], storage: Storage):
    """Opens nothing yet."""
    self._shards = tuple(shards)
    self._storage = storage
    self._ends = np.cumsum([shard.take for shard in shards], dtype=np.int64)
    self._open: dict[str, array_record_module.ArrayRecordReader] = {}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: int) -> bytes:
    """Returns a record.

    Raises:
      BadExample: it is damaged, or its shard is, or is not there.
    """
    number = int(np.searchsorted(self._ends, index, side="right"))
    shard = self._shards[number]
    place = index - int(self._ends[number]) + shard.take + shard.skip
    reader = self._reader(shard.path)
    try:
      return reader.read([place])[0]
    except (RuntimeError, IndexError, ValueError) as error:
      # `ok` turns false for good once a read has met a damaged chunk.
      with self._lock:
        self._open.pop(shard.path, None)
      name = self.name(index)
      raise BadExample(_short(error), "record", name) from error

  def name(self, index: int) -> str:
    """Returns what messages call a record: its file and its number there."""
    number = int(np.searchsorted(self._ends, index, side="right"))
    shard = self._shards[number]
    place = index - int(self._ends[number]) + shard.take + shard.skip
    return f"{shard.path}#{place}"

  def _reader(self, path: str) -> array_record_module.ArrayRecordReader:
    reader = self._open.get(path)
    if reader is None:
      with self._lock:
        reader = self._open.get(path) or open_reader(path, self._storage)
        self._open[path] = reader
    return reader

  def __getstate__(self):
    return {**self.__dict__, "_open": {}, "_lock": None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())


def open_reader(
  path: str, storage: Storage
) -> array_record_module.ArrayRecordReader:
  """Opens a file.

  Raises:
    BadExample: it is missing, not reached, or no whole ArrayRecord.
  """
  local = storage.copied(path)
  storage.stamp(local)
  # No read-ahead: the next record wanted is anywhere.
  reader = array_record_module.ArrayRecordReader(
    local, "readahead_buffer_size:0", file_reader_buffer_size=32_768
  )
  if not reader.ok():
    try:
      reader.read([0])
      why = "cannot be opened"
    except (RuntimeError, IndexError, ValueError) as error:
      why = _short(error)
    raise BadExample(f"no whole ArrayRecord file: {why}", "record", path)
  return reader


def _short(error: Exception) -> str:
  return str(error).strip().rstrip(";").split(", chunk at")[0]


@functools.cache
def _example_type() -> type:
  """Returns tf.train.Example, as TFDS has it without TensorFlow.

  Raises:
    UserError: TFDS is not installed.
  """
  with extras.needed_by("config.data.name='arrayrecord'"):
    from tensorflow_datasets.proto import tf_example_pb2
  return tf_example_pb2.Example


class SerializedExamples:
  """ArrayRecord files of tf.train.Example; see `example.Records`.

  The files say nothing of their fields: which holds the image and which the
  texts is seen from the first record.
  """

  label_key = None
  class_names = None

  def __init__(self, path: str, split: str, options: Options):
    """Opens every file to count its records.

    Raises:
      UserError: there is no file, too many are missing or damaged, or the
        fields do not tell what they are.
    """
    _example_type()  # Else every record would seem damaged.
    self.where = f"the ArrayRecord files {path}"
    storage = Storage(options.retry_seconds)
    files = storage.expand(path, _SUFFIXES)
    files = choose_files(files, split, path, "ArrayRecord files")
    shards, faults = [], []
    for file in files:
      try:
        count = open_reader(file, storage).num_records()
        shards.append(Shard(file, 0, count))
      except BadExample as error:
        faults.append(Fault.of(-1, file, error))
    self.faults = tuple(faults)
    check_faults(path, faults, len(files), options.max_skipped)
    self._records = ArrayRecords(shards, storage)
    if not len(self._records):
      raise UserError(f"{self.where}: the data set is empty")
    self._choose_keys(options)

  def _choose_keys(self, options: Options) -> None:
    fields = self._first_fields()
    self.field_names = tuple(fields)
    images = [k for k, v in fields.items() if _is_image(v)]
    texts = [k for k, v in fields.items() if k not in images and _is_text(v)]
    self.image_key = options.image_key or choose(
      "image_key",
      images,
      ("image", "jpg", "image/encoded"),
      self.where,
      [*fields],
    )
    self.text_keys = tuple(options.text_weights) or choose_text(
      options, texts, TEXT_NAMES, self.where, [*fields]
    )
    self.label_key = options.label_key
    names = (n for n in NAME_NAMES if n in texts and n not in self.text_keys)
    self._name_key = next(names, None)
    require_fields(self, fields, options.fields)

  def _first_fields(self) -> dict[str, list]:
    error = None
    for index in range(min(len(self), 16)):
      try:
        return self._parse(index)
      except BadExample as e:
        error = e
    raise UserError(f"{self.where}: {error}") from error

  def __len__(self) -> int:
    return len(self._records)

  def read(self, index: int) -> Record:
    """Returns an example of any file; see `example.Records`."""
    fields = self._parse(index)
    name = self._records.name(index)
    if self._name_key and fields.get(self._name_key):
      name = fields[self._name_key][0].decode("utf-8", "replace")
    for key in (self.image_key, self.label_key):
      if key in fields:
        fields[key] = fields[key][0] if len(fields[key]) else None
    return Record(name, fields)

  def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns fields of all records; reads each."""
    values = {key: [] for key in keys}
    for index in range(len(self)):
      try:
        fields = self._parse(index)
      except BadExample:  # It will be met, and counted, when it is read.
        fields = {}
      for key in keys:
        found = fields.get(key)
        if found is not None and len(found) == 1:
          found = found[0]
        values[key].append(found)
    return {key: column(found) for key, found in values.items()}

  def _parse(self, index: int) -> dict[str, list]:
    record = self._records[index]
    try:
      example = _example_type().FromString(record)
    except Exception as error:  # DecodeError: no ValueError, as it once was.
      name = self._records.name(index)
      raise BadExample("no tf.train.Example", "record", name) from error
    return {
      key: list(
        getattr(feature, feature.WhichOneof("kind") or "int64_list").value
      )
      for key, feature in sorted(example.features.feature.items())
    }


def check_faults(
  path: str, faults: Sequence[Fault], total: int, max_share: float
) -> None:
  """Raises a `UserError` if too many shards cannot be read, or all."""
  if not faults:
    return
  first = f"{faults[0].name}: {faults[0].reason}"
  field = f"config.data.path={path!r}"
  if total == 1:  # What the user named, as a rule.
    raise UserError(
      f"{field}: {faults[0].reason if faults[0].name == path else first}"
    )
  if len(faults) == total:
    raise UserError(
      f"{field}: none of {total} shards can be read; the first: {first}"
    )
  if len(faults) > max_share * total:
    raise UserError(
      f"{field}: {len(faults)} of {total} shards cannot be read, more than"
      f" config.data.max_skipped={max_share}; the first: {first}"
    )


def _is_image(values: list) -> bool:
  return bool(values) and (
    isinstance(values[0], bytes) and looks_like_image(values[0])
  )


def _is_text(values: list) -> bool:
  if not values or not isinstance(values[0], bytes):
    return False
  try:
    return bool(values[0].decode())
  except UnicodeDecodeError:
    return False
