"""Files, local or remote, read with patience.

A path with "://" is read through fsspec (gs://, s3://, https:// ...); file://
and all others are local. What is not there is missing at once; any other
failure is tried again after ever longer waits, for a bounded time.
"""

from collections.abc import Callable
import dataclasses
import errno
import fnmatch
import glob
import hashlib
import os
import time
from typing import Any, BinaryIO, TypeVar

from absl import logging
import braceexpand
import fsspec

from big_siglip import extras
from big_siglip.data.faults import count_retry
from big_siglip.data.sources.cache import cache_path, write_atomically
from big_siglip.errors import BadExample, UserError

_T = TypeVar("_T")
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 15.0  # Seconds.
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def is_remote(path: str) -> bool:
  """Whether `path` is read through fsspec."""
  return "://" in path and not path.startswith("file://")


def local_path(path: str) -> str:
  """Returns a local path without file:// and ~."""
  return os.path.expanduser(path.removeprefix("file://"))


@dataclasses.dataclass(frozen=True)
class Stamp:
  """What changes when a file does."""

  size: int  # Bytes.
  version: str  # Its time of change, or what the storage has in its place.


@dataclasses.dataclass(frozen=True)
class Storage:
  """Reads files; what fails is tried again.

  All methods raise `BadExample`: of kind "missing" when there is no such file,
  of kind "storage" when it was not reached in `retry_seconds`.

  Attributes:
    retry_seconds: how long to wait in all before a read is given up.
  """

  retry_seconds: float = 60.0

  def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
    """Returns the bytes [start, stop) of a file; fewer where it ends before."""
    if is_remote(path):
      return self.call(path, lambda: _read_remote(path, start, stop))
    return self.call(path, lambda: _read_local(path, start, stop))

  def stamp(self, path: str) -> Stamp:
    """Returns a file's size and version."""
    return self.call(path, lambda: _stamp(path))

  def open(self, path: str) -> BinaryIO:
    """Opens a file for reading at any place."""
    if is_remote(path):
      return self.call(path, lambda: fsspec.open(path, "rb").open())
    return self.call(path, lambda: _open_local(path))

  def exists(self, path: str) -> bool:
    """Whether there is such a file."""
    try:
      self.stamp(path)
    except BadExample as error:
      if error.kind == "missing":
        return False
      raise
    return True

  def call(self, path: str, function: Callable[[], _T]) -> _T:
    """Returns what `function`, which reads `path`, returns in the end."""
    waited, wait, tries = 0.0, _FIRST_WAIT, 1
    while True:
      try:
        result = function()
      except _ABSENT as error:
        raise BadExample("no such file", "missing", path) from error
      except PermissionError as error:  # Nor does this pass by waiting.
        raise BadExample("must not be read", "missing", path) from error
      except (UserError, BadExample):
        raise
      # What a remote file system raises is known to itself alone.
      except Exception as error:
        if not (isinstance(error, OSError) or is_remote(path)):
          raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        if waited >= self.retry_seconds:
          raise BadExample(
            f"not reached in {tries} tries over {waited:.3g} s: {reason}",
            "storage",
            path,
          ) from error
        said = "trying again: %s: %s"
        logging.log_first_n(logging.WARNING, said, 20, path, reason)
        time.sleep(wait := min(wait, self.retry_seconds - waited))
        waited, tries = waited + wait, tries + 1
        wait = min(2 * wait, _LONGEST_WAIT)
      else:
        if tries > 1:
          count_retry()
        return result

  def expand(self, pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the files that a pattern means, in order, there or not.

    Args:
      pattern: a file, a folder, or a pattern with {000..123}, {a,b}, * and ?;
        several are joined by "::".
      suffixes: of the files to take from a folder, of small letters, also
        with * in them.

    Raises:
      UserError: it means no file, or it is not reached.
    """
    try:
      return self._expand(pattern, suffixes)
    except BadExample as error:
      raise UserError(f"config.data.path={pattern!r}: {error}") from error

  def _expand(self, pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    files = []
    for part in pattern.split("::"):
      for name in _expand_braces(part, pattern):
        # To ask a server about each of a thousand shards takes a while.
        is_file = is_remote(name) and _has_suffix(name, suffixes)
        if any(sign in name for sign in "*?[") and not _is_there(name):
          files += self.glob(name)
        elif not is_file and self.is_folder(name):
          found = self._list(name.rstrip("/"))
          files += [f for f in found if _has_suffix(f, suffixes)]
        else:
          files.append(name)
    if not files:
      there = self._names_in(pattern)
      raise UserError(
        f"config.data.path={pattern!r}: no such files ({' or '.join(suffixes)})"
        + f"; it holds {', '.join(there)}" * bool(there)
      )
    return files

  def _names_in(self, folder: str) -> list[str]:
    """Returns some of what a folder holds; none of what is no folder."""
    if is_remote(folder) or not _is_there(folder):
      return []
    names = (path.rsplit("/", 1)[-1] for path in self._list(folder))
    return sorted(names)[:5]

  def is_folder(self, path: str) -> bool:
    """Whether `path` is a folder."""
    if is_remote(path):
      fs, name = file_system(path)
      return self.call(path, lambda: fs.isdir(name))
    return os.path.isdir(local_path(path))

  def _list(self, folder: str) -> list[str]:
    if not is_remote(folder):
      folder = glob.escape(local_path(folder))
    return self.glob(f"{folder}/*")

  def glob(self, pattern: str) -> list[str]:
    """Returns the files that match * and ?, in order."""
    if not is_remote(pattern):
      return sorted(glob.glob(local_path(pattern)))
    fs, name = file_system(pattern)
    found = self.call(pattern, lambda: sorted(fs.glob(name)))
    return [fs.unstrip_protocol(path) for path in found]

  def copied(self, path: str) -> str:
    """Returns a local file of the same bytes: `path` itself if it is local.

    A remote file is copied whole into the cache folder, once for each version.
    """
    if not is_remote(path):
      return local_path(path)
    stamp = self.stamp(path)
    copy = cache_path(path, f"{stamp.size}-{stamp.version}")
    if not os.path.exists(copy):
      write_atomically(copy, self.read(path))
    return copy


def file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
  """Returns the file system of a remote path, and what it calls the path.

  Raises:
    UserError: there is no such one, or the library for it is not installed.
  """
  try:
    return fsspec.core.url_to_fs(path)
  except ImportError as error:
    extra = extras.STORES.get(path.partition("://")[0])
    hint = f": {extras.how(extra)}" if extra else ""
    raise UserError(f"config.data.path={path!r}: {error}{hint}") from error
  except ValueError as error:
    raise UserError(f"config.data.path={path!r}: {error}") from error


def _is_there(path: str) -> bool:
  """Whether a local file or folder is called so, whatever signs it has."""
  return not is_remote(path) and os.path.exists(local_path(path))


def _expand_braces(part: str, pattern: str) -> list[str]:
  """Returns the names that a part of a pattern means, * and ? still in them."""
  if _is_there(part):
    return [part]
  try:
    return list(braceexpand.braceexpand(part))
  except braceexpand.UnbalancedBracesError as error:
    raise UserError(
      f"config.data.path={pattern!r}: its braces do not match"
    ) from error


def _has_suffix(path: str, suffixes: tuple[str, ...]) -> bool:
  name = path.rsplit("/", 1)[-1].lower()
  return any(fnmatch.fnmatchcase(name, f"*{suffix}") for suffix in suffixes)


def _http_reason(error: FileNotFoundError) -> BaseException | None:
  """Returns what made fsspec's HTTP say that a file is not there.

  It says so of any failure, such as a server that has too much to do.
  """
  cause = error.__cause__
  ours = type(cause).__module__.startswith("aiohttp")
  if not (ours or isinstance(cause, TimeoutError)):
    return None
  status = getattr(cause, "status", 500)
  return None if 400 <= status < 500 and status not in (408, 429) else cause


def _open_local(path: str) -> BinaryIO:
  too_long = errno.ENAMETOOLONG
  try:
    return open(local_path(path), "rb")
  except (OSError, ValueError) as error:
    if getattr(error, "errno", too_long) != too_long:
      raise
    raise FileNotFoundError(path) from error  # No file can be called so.


def _read_local(path: str, start: int, stop: int | None) -> bytes:
  with _open_local(path) as file:
    file.seek(start)
    return file.read() if stop is None else file.read(stop - start)


def _read_remote(path: str, start: int, stop: int | None) -> bytes:
  fs, name = file_system(path)
  if start == 0 and stop is None:
    return fs.cat_file(name)
  data = fs.cat_file(name, start=start, end=stop)
  if stop is not None and len(data) > stop - start:
    return data[start:stop]  # A server that knows no ranges sends everything.
  return data


def _stamp(path: str) -> Stamp:
  if not is_remote(path):
    status = os.stat(local_path(path))
    return Stamp(status.st_size, str(status.st_mtime_ns))
  fs, name = file_system(path)
  fs.invalidate_cache()
  try:
    info: dict[str, Any] = fs.info(name)
  except FileNotFoundError as error:
    raise _http_reason(error) or error from None
  if info.get("type") == "directory":
    raise IsADirectoryError(path)
  keys = ("etag", "ETag", "md5Hash", "mtime", "LastModified", "created")
  version = "-".join(str(info[key]) for key in keys if info.get(key))
  digest = hashlib.sha256(version.encode()).hexdigest()[:16]
  return Stamp(int(info["size"] or 0), digest)
