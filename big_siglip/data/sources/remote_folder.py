"""Remote folders whose files belong together, read as local ones."""

import os

from big_siglip.data.sources.cache import cache_path, write_atomically
from big_siglip.data.sources.storage import (
  file_system,
  is_remote,
  local_path,
  Storage,
)
from big_siglip.errors import BadExample, UserError


def names_in(folder: str, storage: Storage) -> list[str]:
  """Returns the names of what lies in a remote folder, none without one.

  Raises:
    UserError: it is not reached.
  """
  fs, root = file_system(folder)
  try:
    files = storage.call(folder, lambda: fs.ls(root, detail=False))
  except BadExample as error:
    if error.kind == "missing":
      return []
    raise UserError(f"config.data.path={folder!r}: {error}") from error
  return [file.rstrip("/").rsplit("/", 1)[-1] for file in files]


def copied(
  folder: str, storage: Storage, description: str, suffixes: tuple[str, ...]
) -> str:
  """Returns a local folder with the same files; `folder` itself if it is one.

  Args:
    folder: local or remote.
    storage: reads it.
    description: the name of a file in it; the others are copied once for each
      version of this one, and what is added to them later, then.
    suffixes: of the files that are wanted.

  Raises:
    BadExample: the description is missing, or a file is not reached.
  """
  if not is_remote(folder):
    return local_path(folder)
  stamp = storage.stamp(os.path.join(folder, description))
  copy = cache_path(folder, f"{stamp.size}-{stamp.version}")
  for name in names_in(folder, storage):
    place = os.path.join(copy, name)
    if name.endswith(suffixes) and not os.path.exists(place):
      write_atomically(place, storage.read(os.path.join(folder, name)))
  return copy
