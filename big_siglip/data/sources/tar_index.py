"""Where the samples of a tar shard lie: found from its headers alone.

A sample is a run of files whose paths are equal up to the first dot of the last
part, as webdataset has it. The index keeps one number a sample: where its first
header stands, in blocks of 512 bytes. Everything else is read with the sample.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import io
import json
import threading
import zipfile

import numpy as np

from big_siglip.data.sources import tar_reading
from big_siglip.data.sources.cache import cache_path, write_atomically
from big_siglip.data.sources.storage import (
  is_remote,
  local_path,
  Storage,
)
from big_siglip.data.sources.tar_members import (
  BLOCK,
  Damaged,
  members,
  padded,
)
from big_siglip.data.sources.tar_reading import Read

_VERSION = 3  # Of the index files.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# numpy parses the head of an array by `ast`, which counts its own depth for all
# threads together in Python 3.11: at times one trips over another's.
_loading = threading.Lock()


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
  starts with an extension that has been. A shard most of whose samples are torn
  apart, for it was not sorted, has none.
  """
  starts, last, end, problem = [], None, 0, ""
  extensions, seen, torn = set(), {}, []
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
        if extension not in seen.setdefault(key, {extension}):
          torn.append(key)
      extensions.add(extension)
      seen[key].add(extension)
      end = member.start + padded(member.size)
    if not read(end, end + 1):
      problem = "ends without the empty blocks that close a tar"
  except Damaged as error:
    problem = str(error)
    end = min(size, end + BLOCK)
  if torn:
    problem = problem or (
      f"the files of {len(torn)} samples, such as {torn[0].lstrip('/')}, do not"
      " follow each other: its files must be sorted by name"
    )
    if 2 * len(set(torn)) >= len(seen):
      starts = []
  return ShardIndex(np.array(starts, np.uint32), padded(end) // BLOCK, problem)


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
