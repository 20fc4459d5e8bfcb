"""Reads a tar shard by places, a header here and a file there."""

from collections.abc import Callable, Iterator
import contextlib
import os

from big_siglip.data.sources.storage import is_remote, Storage

_HEADERS = 2_048  # Bytes: PAX's, with the file's own, and a caption.
_READ_AHEAD = 2**18  # Bytes of a remote shard that one request brings.

Read = Callable[[int, int], bytes]  # (start, stop) -> bytes.


@contextlib.contextmanager
def opened(path: str, storage: Storage) -> Iterator[Read]:
  """Gives the function that reads a shard in small pieces."""
  if is_remote(path):
    yield _RemoteReader(path, storage)
    return
  with storage.open(path) as file:
    yield LocalReader(file.fileno())


class LocalReader:
  """Reads headers together with the little that follows them."""

  def __init__(self, file: int):
    """Reads from a file descriptor."""
    self._file = file
    self._start, self._data = 0, b""

  def __call__(self, start: int, stop: int) -> bytes:
    """Returns the bytes [start, stop); fewer where the file ends before."""
    size = stop - start
    if size > _HEADERS:  # An image, say, of which no copy is wanted.
      return os.pread(self._file, size, start)
    offset = start - self._start
    if not 0 <= offset <= len(self._data) - size:
      self._data = os.pread(self._file, _HEADERS, start)
      self._start, offset = start, 0
    return self._data[offset : offset + size]


class _RemoteReader:
  """Reads a remote file in pieces that are worth a request."""

  def __init__(self, path: str, storage: Storage):
    self._path, self._storage = path, storage
    self._size = storage.stamp(path).size
    self._start, self._data = 0, b""

  def __call__(self, start: int, stop: int) -> bytes:
    end = self._start + len(self._data)
    if not self._start <= start <= stop <= end:
      if start >= self._size:  # Some servers call this an error.
        return b""
      ahead = min(self._size, max(stop, start + _READ_AHEAD))
      self._data = self._storage.read(self._path, start, ahead)
      self._start = start
    return self._data[start - self._start : stop - self._start]
