"""What lies in a folder, and which of it a table means by an image's name."""

from collections.abc import Callable, Iterator
import functools
import os
import pathlib
import re
import unicodedata

from big_siglip.data import image_files
from big_siglip.data.sources.storage import (
  file_system,
  is_remote,
  Storage,
)
from big_siglip.errors import UserError

# Flickr8k numbers the captions of an image: NAME.jpg#0.
_NUMBER = re.compile(r"#\d+$")


class Listing:
  """The files of a folder; all of it is listed once, when that is needed."""

  def __init__(
    self,
    folder: str,
    storage: Storage,
    files: tuple[str, ...] | None = None,
  ):
    """Lists nothing yet.

    Args:
      folder: local or remote.
      storage: reads it.
      files: all that it holds, or is to hold; None: what lies there.
    """
    self.folder, self.storage = folder, storage
    self._looks = files is None and not is_remote(folder)
    if files is not None:
      self.files = files

  def path(self, name: str) -> str:
    """Returns the whole path of a file."""
    return os.path.join(self.folder, name)

  @functools.cached_property
  def top(self) -> tuple[str, ...]:
    """The names of the files at the top, and of folders with "/", sorted."""
    if is_remote(self.folder):
      firsts = (file.split("/", 1) for file in self.files)
      names = {first + "/" * len(rest) for first, *rest in firsts}
    else:
      with os.scandir(self.folder) as entries:
        names = {e.name + "/" * _is(e.is_dir) for e in entries}
    return tuple(sorted(n for n in names if not n.startswith(".")))

  @functools.cached_property
  def files(self) -> tuple[str, ...]:
    """All files below the folder, by their paths from it on, sorted."""
    if not is_remote(self.folder):
      return tuple(sorted(_walk(self.folder)))
    fs, root = file_system(self.folder)
    root = root.rstrip("/") + "/"
    found = self.storage.call(self.folder, lambda: fs.find(root))
    names = (file.removeprefix(root) for file in found)
    return tuple(sorted(n for n in names if not n.startswith(".")))

  @functools.cached_property
  def images(self) -> tuple[str, ...]:
    """Those of them that are called as images are."""
    return tuple(file for file in self.files if image_files.is_image(file))

  def is_file(self, name: str) -> bool:
    """Whether there is such a file."""
    if not self._looks:
      return name in self._known
    if "files" in vars(self) and not (name[:1] in "./" or "/." in name):
      return name in self._known  # Faster than to ask the disk again.
    return os.path.isfile(os.path.join(self.folder, name))

  def find(self, image: str) -> str | None:
    """Returns the path of an image, from the folder on; None without it.

    It lies in the folder or in images/, of an absolute path from elsewhere as
    much of its end as does. Else it is the only image anywhere below whose path
    ends so: also where the table has backslashes, another Unicode form, other
    capitals, a number behind "#" or no extension.

    Raises:
      UserError: there are several.
    """
    if found := self._find_here(image):
      return found
    for name in (*_spellings(image), *_ends(image)):
      if found := self._find_here(name):
        return found
    for name in _spellings(image):
      if found := self._find_below(name):
        return found
    return None

  def _find_here(self, name: str) -> str | None:
    for candidate in (name, os.path.join("images", name)):
      path = candidate
      if "./" in path or "//" in path:
        path = pathlib.PurePath(candidate).as_posix()
      if self.is_file(candidate if self._looks else path):
        return path
    return None

  def _find_below(self, name: str) -> str | None:
    wanted = _normal(pathlib.PurePath(name).as_posix().removeprefix("./"))
    last = wanted.rpartition("/")[-1]
    for table, end in (
      (self._by_name, wanted),
      (self._by_stem, wanted),
      (self._by_folded, wanted.casefold()),
    ):
      key = last.casefold() if table is self._by_folded else last
      found = [
        path
        for form, path in table.get(key, ())
        if f"/{form}".endswith(f"/{end}")
      ]
      if len(found) == 1:
        return found[0]
      if found:
        raise UserError(
          f"{self.folder}: {len(found)} images could be {name!r}:"
          f" {', '.join(found[:3])}; its table must tell which"
        )
    return None

  @functools.cached_property
  def _known(self) -> frozenset[str]:
    return frozenset(self.files)

  @functools.cached_property
  def _by_name(self):
    return _table((_normal(path), path) for path in self.images)

  @functools.cached_property
  def _by_stem(self):
    forms = ((os.path.splitext(_normal(p))[0], p) for p in self.images)
    return _table(forms)

  @functools.cached_property
  def _by_folded(self):
    return _table((_normal(path).casefold(), path) for path in self.images)


def _table(forms: Iterator[tuple[str, str]]) -> dict[str, list]:
  """Returns {last part of a form: (form, path) of each that ends so}."""
  table: dict[str, list] = {}
  for form, path in forms:
    table.setdefault(form.rpartition("/")[-1], []).append((form, path))
  return table


def _normal(path: str) -> str:
  return unicodedata.normalize("NFC", path)


def _spellings(image: str) -> list[str]:
  """Returns how a file may be called that a table calls `image`."""
  names = [image, image.strip()]
  names.append(names[-1].replace("\\", "/"))
  names.append(_NUMBER.sub("", names[-1]))
  return list(dict.fromkeys(filter(None, names)))


def _ends(image: str) -> list[str]:
  """Returns the ends of an absolute path, the longest first; none of others."""
  path = _spellings(image)[-1] if image.strip() else ""
  if not (path.startswith(("/", "file://")) or path[1:3] == ":/"):
    return []
  parts = re.sub(r"^(file://|[A-Za-z]:)", "", path).strip("/").split("/")
  return ["/".join(parts[i:]) for i in range(len(parts))]


def _is(kind: Callable[[], bool]) -> bool:
  """Returns what a file is; a link that leads round in a ring is nothing."""
  try:
    return kind()
  except OSError:
    return False


def _walk(folder: str) -> Iterator[str]:
  """Yields all files below a folder; links to folders are followed once.

  What is hidden is left out, and what is no file: to open a pipe is to wait.
  """
  seen = set()
  for parent, folders, _ in os.walk(folder, followlinks=True):
    status = os.stat(parent)
    if (status.st_dev, status.st_ino) in seen:
      folders.clear()
      continue
    seen.add((status.st_dev, status.st_ino))
    folders[:] = sorted(f for f in folders if not f.startswith("."))
    below = os.path.relpath(parent, folder)
    with os.scandir(parent) as entries:
      for entry in entries:
        if not entry.name.startswith(".") and _is(entry.is_file):
          yield entry.name if below == "." else f"{below}/{entry.name}"
