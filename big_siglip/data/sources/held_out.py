"""Which images of a folder are held out: a tenth, equal files together."""

from collections.abc import Callable, Hashable, Sequence
import concurrent.futures
import hashlib
import os

from big_siglip.data.sources.storage import file_system, is_remote, Storage
from big_siglip.errors import BadExample

_END = 2**12  # Bytes: most files of one size differ there.
_THREADS = 16  # That read; most of the time they wait for a disk.

# From names to what is equal for equal images, or None.
Keys = Callable[[Sequence[str]], Sequence[Hashable]]


def split_of(image: str) -> str:
  """Returns "test" for a tenth of all names, "train" for the others."""
  digest = hashlib.sha256(image.encode("utf-8", "surrogatepass")).digest()
  return "test" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"


def splits_of(
  images: Sequence[str], folder: str, storage: Storage
) -> dict[str, str]:
  """Returns the split of each image of a folder.

  It follows from the image's name, or, of files of equal bytes, from the first
  of their names: an image that was trained on is not held out under another
  name. Files of equal size alone are read.

  Args:
    images: paths from the folder on.
    folder: local or remote.
    storage: reads it.

  Raises:
    BadExample: the folder is not reached.
  """
  sizes = _Sizes(folder, storage)

  def ends(names: Sequence[str]) -> list[bytes | None]:
    return _digests(
      [(os.path.join(folder, n), max(sizes.of(n) - _END, 0)) for n in names],
      storage,
    )

  def wholes(names: Sequence[str]) -> list[bytes | None]:
    return _digests([(os.path.join(folder, n), 0) for n in names], storage)

  return splits_by(images, (sizes, ends, wholes))


def splits_by(images: Sequence[str], keys: Sequence[Keys]) -> dict[str, str]:
  """Returns the split of each image; those of equal keys are of one split.

  Args:
    images: names.
    keys: from names to what is equal for equal images, or None; the next one is
      asked of those alone that are equal by all before.
  """
  groups = [list(images)]
  for key in keys:
    names = [name for group in groups for name in group]
    numbers = [i for i, group in enumerate(groups) for _ in group]
    parts: dict[Hashable, list[str]] = {}
    for name, number, found in zip(names, numbers, key(names), strict=True):
      if found is not None:
        parts.setdefault((number, found), []).append(name)
    groups = [part for part in parts.values() if len(part) > 1]
  found = {image: split_of(image) for image in images}
  for group in groups:
    found |= dict.fromkeys(group, split_of(min(group)))
  return found


class _Sizes:
  """How many bytes images have; a remote folder is listed once."""

  def __init__(self, folder: str, storage: Storage):
    self._folder, self._storage = folder, storage
    self._known: dict[str, int | None] = {}

  def __call__(self, names: Sequence[str]) -> list[int | None]:
    if is_remote(self._folder):
      fs, root = file_system(self._folder)
      root = root.rstrip("/") + "/"
      listed = self._storage.call(
        self._folder, lambda: fs.find(root, detail=True)
      )
      about = {file.removeprefix(root): found for file, found in listed.items()}
      self._known = {name: about.get(name, {}).get("size") for name in names}
    else:
      self._known = {name: self._local(name) for name in names}
    return list(self._known.values())

  def of(self, name: str) -> int:
    """Returns the size of one that has been asked for, and has one."""
    return self._known[name] or 0

  def _local(self, name: str) -> int | None:
    try:
      return os.stat(os.path.join(self._folder, name)).st_size
    except (OSError, ValueError):  # It is named when it is read.
      return None


def _digests(
  places: Sequence[tuple[str, int]], storage: Storage
) -> list[bytes | None]:
  """Returns a hash of each file from a place in it on; None: unreadable."""

  def digest(place: tuple[str, int]) -> bytes | None:
    try:
      return hashlib.sha256(storage.read(*place)).digest()
    except BadExample:
      return None

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(digest, places))
