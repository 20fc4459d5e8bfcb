"""WebDataset and img2dataset shards: tar files, never unpacked."""

import bisect
from collections.abc import Sequence
import concurrent.futures
import contextlib
import itertools
import json
import os
from typing import Any

import numpy as np

from big_siglip.data.class_names import sort_labels
from big_siglip.data.faults import Fault
from big_siglip.data.image_files import EXTENSIONS, is_image
from big_siglip.data.sources import tar_index, tar_reading
from big_siglip.data.sources.array_records import check_faults
from big_siglip.data.sources.example import (
  choose,
  column,
  Options,
  Record,
  require_fields,
  TEXT_NAMES,
)
from big_siglip.data.sources.nested import dig
from big_siglip.data.sources.numbered import alike
from big_siglip.data.sources.splits import choose_files
from big_siglip.data.sources.storage import is_remote, local_path, Storage
from big_siglip.data.sources.tar_index import ShardIndex
from big_siglip.data.sources.tar_members import (
  BLOCK,
  content,
  Damaged,
  members,
)
from big_siglip.errors import BadExample, UserError

_THREADS = 32  # That index; most of the time they wait for a disk or a server.


class TarRecords:
  """The samples of tar shards; see `example.Records`.

  The fields of a sample are its files by extension, and what its json file
  holds by key: DataComp's and LAION's jpg, txt and json, cls for labels. A
  sample is read at once, with one request: its files follow each other.
  """

  def __init__(self, path: str, split: str, options: Options):
    """Indexes the shards, or reads the index that is kept.

    Raises:
      UserError: there is no shard, too many are missing, or the first samples
        do not tell what their fields are.
    """
    self.where = f"the tar shards {path}"
    self._storage = Storage(options.retry_seconds)
    files = self._storage.expand(path, (".tar",))
    files = choose_files(files, split, path, "tar shards")
    self._shards, indices, faults = [], [], []
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for file, found in zip(files, pool.map(self._index, files), strict=True):
        if isinstance(found, BadExample):
          faults.append(Fault.of(-1, file, found))
          continue
        if found.problem:
          faults.append(Fault(-1, "record", file, found.problem))
        if len(found.starts):
          self._shards.append(file)
          indices.append(found)
    self.faults = tuple(faults)
    lost = [f for f in faults if f.name not in self._shards]
    check_faults(path, lost, len(files), options.max_skipped)
    if not indices:
      raise UserError(f"{self.where}: the data set is empty")
    self._starts = np.concatenate([index.starts for index in indices])
    self._last = [index.end for index in indices]
    self._ends = list(itertools.accumulate(len(i.starts) for i in indices))
    self._choose_keys(options)

  def _index(self, file: str) -> ShardIndex | BadExample:
    try:
      return tar_index.index_shard(file, self._storage)
    except BadExample as error:
      return error

  def _choose_keys(self, options: Options) -> None:
    fields, error = {}, None
    for index in range(min(len(self), 16)):
      try:
        fields |= self._read(index).fields
      except BadExample as e:
        error = e
    if not fields:
      raise UserError(f"{self.where}: {error}") from error
    self.field_names = tuple(sorted(fields))
    self.image_key = options.image_key
    # Not asked for one, any is the image: shards may hold several formats.
    self._image_keys = () if self.image_key else EXTENSIONS
    if not self.image_key:
      images = [k for k in EXTENSIONS if k in fields]
      images = images or [k for k in fields if is_image(f".{k}")]
      self.image_key = self._choose(
        "image_key", images, EXTENSIONS, fields, options
      )
    self.label_key = options.label_key or ("cls" if "cls" in fields else None)
    self.class_names = None
    if self.label_key:
      self.class_names = self._read_class_names(dig(fields, self.label_key))
    self.text_keys = tuple(options.text_weights)
    if not self.text_keys:
      texts = [
        k for k, v in fields.items() if k in TEXT_NAMES and v is not None
      ]
      texts = texts or [k for k in fields if k.endswith(".txt")]
      if not texts and self.class_names:
        texts = [self.label_key]
      names = ("txt", *TEXT_NAMES)
      self.text_keys = alike(list(fields), names) if not texts else ()
      if not self.text_keys:
        found = self._choose("text_keys", texts, names, fields, options)
        self.text_keys = (found,) if found else ()
    require_fields(self, dict(sorted(fields.items())), options.fields)

  def _choose(
    self, what: str, candidates, preferred, fields: dict[str, Any], options
  ) -> str | None:
    try:
      return choose(what, candidates, preferred, self.where, [*fields])
    except UserError as error:
      if what == "text_keys" and not options.needs_texts:
        return None
      if not any("." in key for key in fields):
        raise
      raise UserError(
        f"{error} (a name is cut at its first dot, as webdataset does)"
      ) from error

  def _read_class_names(self, first: Any) -> tuple[str, ...] | None:
    """Returns what labels mean: in order, or all words that they are.

    classnames.txt says so: CLIP_benchmark keeps it thereabouts.
    """
    folder = os.path.dirname(self._shards[0])
    for place in (folder, os.path.dirname(folder)):
      try:
        text = self._storage.read(os.path.join(place, "classnames.txt"))
      except BadExample:
        continue
      lines = text.decode("utf-8-sig", "replace").replace("\r\n", "\n")
      return tuple(lines.rstrip("\n").split("\n"))
    if not _is_word(first):
      return None
    labels = self.columns([self.label_key])[self.label_key]
    words = {str(label).strip() for label in labels if label is not None}
    return sort_labels(words - {""})

  def __len__(self) -> int:
    return len(self._starts)

  def read(self, index: int) -> Record:
    """Returns a sample, in one piece; see `example.Records`."""
    record = self._read(index)
    if record.fields.get(self.image_key) is not None:
      return record
    others = (record.fields.get(key) for key in self._image_keys)
    image = next((data for data in others if isinstance(data, bytes)), None)
    return Record(record.name, {**record.fields, self.image_key: image})

  def _read(self, index: int) -> Record:
    shard, start, stop = self._place(index)
    path = self._shards[shard]
    if is_remote(path):  # One request; the files of a sample lie together.
      block = self._storage.read(path, start, stop)
      return _sample(
        lambda a, b: block[a - start : b - start], path, start, stop
      )

    def read() -> Record:
      file = os.open(local_path(path), os.O_RDONLY | os.O_CLOEXEC)
      try:
        return _sample(tar_reading.LocalReader(file), path, start, stop)
      finally:
        os.close(file)

    return self._storage.call(path, read)

  def _place(self, index: int) -> tuple[int, int, int]:
    """Returns shard, first byte and end of a sample."""
    shard = bisect.bisect_right(self._ends, index)
    last = index + 1 == self._ends[shard]
    stop = self._last[shard] if last else self._starts.item(index + 1)
    return shard, self._starts.item(index) * BLOCK, stop * BLOCK

  def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns fields of all samples; kept like the index."""
    numbers = range(len(self._shards))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      parts = list(pool.map(lambda n: self._shard_columns(n, keys), numbers))
    return {key: column([v for p in parts for v in p[key]]) for key in keys}

  def _shard_columns(self, shard: int, keys: Sequence[str]) -> dict[str, list]:
    """Returns fields of one shard's samples; kept like its index."""
    path = self._shards[shard]

    def compute(size: int) -> dict[str, np.ndarray]:
      del size
      text = json.dumps(self._read_columns(shard, keys))
      return {"json": np.frombuffer(text.encode(), np.uint8)}

    what = "columns-" + "-".join(k.replace("/", ".") for k in keys)
    kept = tar_index.cached(path, what, self._storage, compute)
    return json.loads(kept["json"].tobytes())

  def _read_columns(self, shard: int, keys: Sequence[str]) -> dict[str, list]:
    stop = int(self._ends[shard])
    start = int(self._ends[shard - 1]) if shard else 0
    values = {key: [] for key in keys}
    path = self._shards[shard]
    with tar_reading.opened(path, self._storage) as read:
      for index in range(start, stop):
        fields = self._small_fields(read, index)
        for key in keys:
          value = dig(fields, key)
          if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
          values[key].append(value)
    return values

  def _small_fields(self, read: tar_reading.Read, index: int) -> dict[str, Any]:
    """Returns the fields of a sample without its images."""
    _, begin, end = self._place(index)
    fields, first = {}, None
    try:
      for member in members(read, begin, end):
        key, extension = tar_index.split_name(member.name)
        if key != (first := first or key) or is_image(f".{extension}"):
          continue
        fields[extension] = content(read, member, end)
    except Damaged:
      pass  # As `_sample`, which keeps what came before.
    except BadExample:
      return {}  # It will be met when it is read.
    with contextlib.suppress(BadExample):
      return _with_json(fields, "")
    return {}


def _sample(read: tar_reading.Read, path: str, start: int, stop: int) -> Record:
  """Returns the sample of a shard between two bytes.

  Raises:
    BadExample: nothing of it, or only half of a file can be read.
  """
  fields, problem, first = {}, "", None
  try:
    for member in members(read, start, stop):
      key, extension = tar_index.split_name(member.name)
      if not extension or (first is not None and key != first):
        continue
      first = key
      fields[extension] = content(read, member, stop)
  except Damaged as error:
    problem = str(error)
  name = f"{path}#{start if first is None else first.lstrip('/')}"
  if not fields or (problem and len(fields) < 2):
    raise BadExample(problem or "the shard ends before it", "record", name)
  return Record(name, _with_json(fields, name))


def _is_word(label: Any) -> bool:
  """Whether a label is no number."""
  if isinstance(label, bytes):
    label = label.decode("utf-8", "replace")
  return isinstance(label, str) and not label.strip().lstrip("-").isdigit()


def _with_json(fields: dict[str, Any], name: str) -> dict[str, Any]:
  """Returns the fields and those of the json file, which come after them."""
  if "json" not in fields:
    return fields
  try:
    inner = json.loads(fields["json"])
  except (ValueError, RecursionError) as error:
    raise BadExample(
      f"its json file is no JSON ({error})", "record", name
    ) from error
  return {**inner, **fields} if isinstance(inner, dict) else fields
