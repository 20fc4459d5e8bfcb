"""Where the samples of a tar shard lie: found from its headers alone.

A sample is a run of files whose paths are equal up to the first dot of the last
part, as webdataset has it. The index keeps one number a sample: where its first
header stands, in blocks of 512 bytes. Everything else is read with the sample.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import io
import json
import tarfile
import threading
from typing import NamedTuple
import zipfile

import numpy as np

from big_siglip.data.sources import tar_reading
from big_siglip.data.sources.storage import (
  cache_path,
  is_remote,
  local_path,
  Storage,
  write_atomically,
)
from big_siglip.data.sources.tar_reading import Read

BLOCK = tarfile.BLOCKSIZE  # 512 bytes.
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_BYTES = (b"1", b"2", b"3", b"4", b"5", b"6")  # Links, folders, pipes.
_LONG = (
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.XHDTYPE,
  tarfile.SOLARIS_XHDTYPE,
)
_VERSION = 2  # Of the index files.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# numpy parses the head of an array by `ast`, which counts its own depth for all
# threads together in Python 3.11: at times one trips over another's.
_loading = threading.Lock()


class Member(NamedTuple):
  """A file in a tar."""

  name: str
  header: int  # Where its first header starts, in bytes.
  start: int  # Where its bytes start.
  size: int


class Damaged(Exception):
  """What follows in a tar cannot be read."""


@dataclasses.dataclass(frozen=True)
class ShardIndex:
  """The samples of one shard.

  Attributes:
    starts: uint32 [n]: the block with the first header of each sample.
    end: the block after the last sample.
    problem: why the rest of the shard cannot be read; "" for a whole one.
  """

  starts: np.ndarray
  end: int
  problem: str


def members(read: Read, start: int, stop: int) -> Iterator[Member]:
  """Yields the regular files of a tar between two headers, in order.

  GNU's and PAX's long names are read. tarfile knows them too, but builds an
  object of 20 attributes for each file, at several times the time. The last
  file may reach beyond `stop`.

  Args:
    read: (start, stop) -> the bytes of the tar.
    start: of a header, in bytes.
    stop: the end of the tar, or of a sample.

  Raises:
    Damaged: a header is no header, or the tar ends within a file.
  """
  position, first, name, size = start, start, None, None
  reach = start
  while position < stop:
    header = read(position, position + BLOCK)
    if len(header) < BLOCK:
      raise Damaged(f"ends within a header, at byte {position}")
    if not header[0] and header.count(0) == BLOCK:
      return  # What closes a tar.
    kind, own_name, own_size = _parse(header, position)
    data = position + BLOCK
    if kind in _LONG:
      told = _long(kind, read(data, data + own_size))
      name, size = told.get("path", name), told.get("size", size)
      reach, position = data + own_size, data + _padded(own_size)
      continue
    length = _length(own_size if size is None else size, position)
    if kind in _REGULAR:
      yield Member(name or own_name, first, data, length)
    elif kind in _WITHOUT_BYTES:  # Whatever their headers say.
      length = 0
    reach, position = data + length, data + _padded(length)
    if kind != tarfile.XGLTYPE:
      first, name, size = position, None, None
  if reach > stop:
    raise Damaged(f"ends within a file, which would reach to byte {reach}")


def _parse(header: bytes, position: int) -> tuple[bytes, str, int]:
  """Returns type, name and size of a header.

  Raises:
    Damaged: it is none.
  """
  try:
    if header[257:262] != b"ustar":  # Before POSIX: its checksum must tell.
      checksum = int(header[148:156].strip(b"\0 "), 8)
      # The field itself counts as eight spaces.
      if checksum != sum(header) - sum(header[148:156]) + 256:
        raise ValueError
    if header[124] & 0x80:  # More than 8 GiB: base 256.
      size = int.from_bytes(header[125:136], "big")
    else:
      size = int(header[124:136].strip(b"\0 ") or b"0", 8)
  except ValueError:
    raise Damaged(f"no tar header at byte {position}") from None
  name = header[:100].split(b"\0", 1)[0]
  if header[345] and header[257:263] == b"ustar\0":
    name = header[345:500].split(b"\0", 1)[0] + b"/" + name
  return header[156:157], name.decode("utf-8", "surrogateescape"), size


def _length(size: int | str, position: int) -> int:
  """Returns bytes of a file, which PAX may have told in anything but digits."""
  try:
    length = int(size)
  except ValueError:
    length = -1
  if length < 0:
    raise Damaged(f"no size of a file at byte {position}")
  return length


def _long(kind: bytes, text: bytes) -> dict[str, str]:
  """Returns what GNU or PAX say ahead of a header: "path", "size".

  A PAX field is "LENGTH KEY=VALUE" and a newline.
  """
  fields = {}
  if kind == tarfile.GNUTYPE_LONGNAME:
    name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return {"path": name}
  if kind == tarfile.GNUTYPE_LONGLINK:
    return fields
  while text:
    length, _, _ = text.partition(b" ")
    if not length.isdigit() or int(length) < len(length) + 3:
      break
    line = text[len(length) + 1 : int(length) - 1]
    key, _, value = line.partition(b"=")
    fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    text = text[int(length) :]
  return fields


def _padded(size: int) -> int:
  return -(-size // BLOCK) * BLOCK


def split_name(name: str) -> tuple[str, str]:
  """Returns what the files of a sample share, and this one's extension.

  A file without one is of no sample, nor is a hidden one, as webdataset has it:
  .DS_Store, and the ._NAME that macOS puts beside each file.
  """
  folder, _, base = name.rpartition("/")
  stem, _, extension = base.partition(".")
  return f"{folder}/{stem}", extension.lower() if stem else ""


def build(read: Read, size: int) -> ShardIndex:
  """Indexes a shard of `size` bytes.

  A sample in which the shard ends is part of the index: whoever reads it is
  told what is wrong. Where samples of one key follow each other, the next one
  starts with an extension that has been.
  """
  starts, last, end, problem = [], None, 0, ""
  extensions = set()
  if read(0, 8).startswith(_COMPRESSED):
    reason = "is compressed, so that it cannot be read by number; unpack it"
    return ShardIndex(np.array([], np.uint32), 0, reason)
  try:
    for member in members(read, 0, size):
      key, extension = split_name(member.name)
      if not extension:
        continue
      if key != last or extension in extensions:
        starts.append(member.header // BLOCK)
        last, extensions = key, set()
      extensions.add(extension)
      end = member.start + _padded(member.size)
    if not read(end, end + 1):
      problem = "ends without the empty blocks that close a tar"
  except Damaged as error:
    problem = str(error)
    end = min(size, end + BLOCK)
  return ShardIndex(np.array(starts, np.uint32), _padded(end) // BLOCK, problem)


def index_shard(path: str, storage: Storage) -> ShardIndex:
  """Returns the index of a shard, kept beside it or in the cache folder.

  Raises:
    BadExample: the shard is missing or not reached.
  """

  def index(size: int) -> ShardIndex:
    with tar_reading.opened(path, storage) as read:
      return build(read, size)

  def compute(size: int) -> dict[str, np.ndarray]:
    found = storage.call(path, lambda: index(size))
    return {
      "starts": found.starts,
      "end": np.int64(found.end),
      "problem": np.array(found.problem),
    }

  kept = cached(path, "index", storage, compute)
  return ShardIndex(kept["starts"], int(kept["end"]), str(kept["problem"]))


def cached(
  path: str,
  what: str,
  storage: Storage,
  compute: Callable[[int], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Returns arrays about a file, computed again only when it has changed.

  They are kept in PATH.WHAT.npz or, where that cannot be written, in the cache
  folder.

  Args:
    path: the file.
    what: they are.
    storage: reads it.
    compute: gets the file's size in bytes.

  Raises:
    BadExample: it is missing or not reached.
  """
  stamp = storage.stamp(path)
  said = json.dumps([_VERSION, stamp.size, stamp.version])
  beside = None if is_remote(path) else f"{local_path(path)}.{what}.npz"
  places = [beside] if beside else []
  places.append(cache_path(path, f"{what}.npz"))
  for place in places:
    if (kept := _load(place, said)) is not None:
      return kept
  arrays = compute(stamp.size)
  for place in places:
    with contextlib.suppress(OSError):  # A folder that others own.
      _save(place, said=np.array(said), **arrays)
      break
  return arrays


def _load(place: str, said: str) -> dict[str, np.ndarray] | None:
  try:
    with _loading, np.load(place) as kept:
      if str(kept["said"]) != said:
        return None
      return {name: kept[name] for name in kept.files if name != "said"}
  # Not there, or not whole.
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def _save(place: str, **arrays: np.ndarray) -> None:
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  write_atomically(place, buffer.getvalue())
