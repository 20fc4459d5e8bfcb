"""Safetensors files, read and written one array at a time.

They are read with plain file reads, not mapped into memory: pages
of a mapped file would count as the process's own, and a model of 3.5 GB would
take 7.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
import math
import mmap
import operator
import os
import pathlib
import threading
from typing import Any

import ml_dtypes
import numpy as np

from big_siglip.errors import UserError

_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
}
# What a damaged file makes its reader raise: JSON that is none of a header's.
_DAMAGED_JSON = (
  ValueError,
  KeyError,
  TypeError,
  AttributeError,
  RecursionError,
)
_MOST_HEADER_BYTES = 100_000_000  # As the format's own library.
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Entry:
  file: pathlib.Path
  dtype: str  # Perhaps one that we do not read, of an array not asked for.
  shape: Shape
  start: int
  size: int  # bytes


class Safetensors:
  """The arrays of one or several safetensors files."""

  def __init__(
    self, path: pathlib.Path, files: Sequence[pathlib.Path] | None = None
  ):
    """Reads the headers.

    Args:
      path: what messages call it.
      files: that are read; None: `path`.

    Raises:
      UserError: not safetensors, or truncated, or a name stands in two files.
    """
    self.path = str(path)
    self._scratch = threading.local()  # New memory costs more than reading.
    self._entries: dict[str, _Entry] = {}
    for file in files or (path,):
      entries = _header(file)
      for key in entries.keys() & self._entries.keys():
        raise UserError(f"{file}: {key} stands in another file as well")
      self._entries.update(entries)

  def shapes(self) -> dict[str, Shape]:
    """Returns {key: shape}."""
    return {key: entry.shape for key, entry in self._entries.items()}

  def read(self, key: str) -> np.ndarray:
    """Returns one array, valid until the thread's next call."""
    entry = self._entries[key]
    if entry.dtype not in _DTYPES:
      raise UserError(
        f"{entry.file}: {key} has dtype {entry.dtype}; known: "
        f"{', '.join(_DTYPES)}"
      )
    size = entry.size
    buffer = getattr(self._scratch, "buffer", None)
    if buffer is None or len(buffer) < size:
      buffer = self._scratch.buffer = new_array((size,), np.uint8)
    with entry.file.open("rb", buffering=0) as stream:
      stream.seek(entry.start)
      view, done = memoryview(buffer)[:size], 0
      while done < size:  # One call reads at most 2 GiB.
        count = stream.readinto(view[done:])
        if not count:
          raise UserError(f"{entry.file}: is truncated: {key} ends early")
        done += count
    return buffer[:size].view(_DTYPES[entry.dtype]).reshape(entry.shape)


def new_array(shape: Shape, dtype: Any) -> np.ndarray:
  """Returns zeros in fresh memory that need no further page faults.

  Taken page by page, as `numpy.empty` does, new memory costs more than what is
  written into it. JAX on a CPU takes it over without a copy.
  """
  size = math.prod(shape) * np.dtype(dtype).itemsize
  flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
  flags |= getattr(mmap, "MAP_POPULATE", 0)  # Linux alone has it.
  memory = mmap.mmap(-1, max(size, 1), flags=flags)
  return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def save_safetensors(
  path: pathlib.Path,
  tensors: Iterable[tuple[str, Shape, Callable[[], np.ndarray]]],
  metadata: Mapping[str, str],
) -> None:
  """Writes float32 arrays, one at a time, and gives the file its name last."""
  tensors = list(tensors)
  header, position = {"__metadata__": dict(metadata)}, 0
  for key, shape, _ in tensors:
    end = position + 4 * math.prod(shape)
    header[key] = {
      "dtype": "F32",
      "shape": list(shape),
      "data_offsets": [position, end],
    }
    position = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  partial = path.with_name(f".{path.name}.partial")
  with partial.open("wb") as stream:
    stream.write(len(text).to_bytes(8, "little") + text)
    for _, shape, array in tensors:
      value = np.asarray(array(), np.float32, order="C")
      assert value.shape == tuple(shape)
      value.tofile(stream)
  partial.replace(path)


def read_metadata(file: pathlib.Path) -> dict[str, str]:
  """Returns what a file says beside its arrays; {} if it is damaged."""
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    if length > _MOST_HEADER_BYTES:
      return {}
    try:
      return dict(json.loads(stream.read(length))["__metadata__"])
    except _DAMAGED_JSON:
      return {}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object that a JSON file holds.

  Raises:
    UserError: it cannot be read, or holds none.
  """
  try:
    value = json.loads(path.read_text())
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f"{path}: is not JSON ({error})") from error
  if not isinstance(value, dict):
    raise UserError(f"{path}: must be a JSON object")
  return value


def _header(file: pathlib.Path) -> dict[str, _Entry]:
  if not file.is_file():
    raise UserError(f"{file}: is no file")
  size = os.path.getsize(file)
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
      raise UserError(f"{file}: is no safetensors file, or is truncated")
    try:
      header = json.loads(stream.read(length), object_pairs_hook=_no_twice)
      header.pop("__metadata__", None)
      entries = {
        key: _entry(file, key, value, 8 + length)
        for key, value in header.items()
      }
    except UserError:
      raise
    except _DAMAGED_JSON as error:
      raise UserError(f"{file}: is no safetensors file") from error
  used = 8 + length
  for key, entry in entries.items():
    used += entry.size
    if entry.start + entry.size > size:
      raise UserError(f"{file}: is truncated: {key} ends beyond the file")
  if used != size:
    raise UserError(
      f"{file}: its arrays take {used} bytes, and it has {size}: not all of it "
      "is named, or some of it twice"
    )
  return entries


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns a JSON object; the library itself would keep the last of two."""
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("a name stands there twice")
  return found


def _entry(file, key, value, offset) -> _Entry:
  start, end = map(operator.index, value["data_offsets"])
  name, shape = str(value["dtype"]), tuple(map(operator.index, value["shape"]))
  wanted = end - start
  if name in _DTYPES:
    wanted = math.prod(shape) * _DTYPES[name].itemsize
  if min((start, wanted, *shape)) < 0 or end - start != wanted:
    raise UserError(
      f"{file}: {key} has {end - start} bytes for shape {list(shape)}"
    )
  return _Entry(file, name, shape, offset + start, end - start)
