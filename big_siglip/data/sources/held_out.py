"""Which images of a folder are held out: a tenth, equal files together."""

from collections.abc import Callable, Hashable, Sequence
import concurrent.futures
import hashlib
import os

from big_siglip.data.sources.storage import file_system, is_remote, Storage
from big_siglip.errors import BadExample

_HEAD = 2**16  # Bytes: most files of one size differ there.
_THREADS = 16  # That read; most of the time they wait for a disk.


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
  keys = (
    _sizes(folder, storage),
    _reader(folder, storage, _HEAD),
    _reader(folder, storage, None),
  )
  return splits_by(images, keys)


def splits_by(
  images: Sequence[str], keys: Sequence[Callable[[str], Hashable]]
) -> dict[str, str]:
  """Returns the split of each image; those of equal keys are of one split.

  Args:
    images: names.
    keys: from a name to what is equal for equal images, or None; the next one
      is asked of those alone that are equal by all before.
  """
  groups = [list(images)]
  for key in keys:
    groups = [part for group in groups for part in _groups(group, key)]
  found = {image: split_of(image) for image in images}
  for group in groups:
    found |= dict.fromkeys(group, split_of(min(group)))
  return found


def _groups(
  images: Sequence[str], key: Callable[[str], Hashable]
) -> list[list[str]]:
  """Returns the images of equal keys, where several have one; None is none."""
  groups: dict[Hashable, list[str]] = {}
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for image, found in zip(images, pool.map(key, images), strict=True):
      if found is not None:
        groups.setdefault(found, []).append(image)
  return [group for group in groups.values() if len(group) > 1]


def _sizes(folder: str, storage: Storage) -> Callable[[str], int | None]:
  """Returns what says how many bytes an image has."""
  if not is_remote(folder):

    def size(image: str) -> int | None:
      try:
        return os.stat(os.path.join(folder, image)).st_size
      except (OSError, ValueError):  # Named when it is read.
        return None

    return size
  fs, root = file_system(folder)
  root = root.rstrip("/") + "/"
  listed = storage.call(folder, lambda: fs.find(root, detail=True))
  known = {file.removeprefix(root): about for file, about in listed.items()}
  return lambda image: known.get(image, {}).get("size")


def _reader(
  folder: str, storage: Storage, stop: int | None
) -> Callable[[str], bytes | None]:
  def digest(image: str) -> bytes | None:
    try:
      data = storage.read(os.path.join(folder, image), 0, stop)
    except BadExample:
      return None
    return hashlib.sha256(data).digest()

  return digest
