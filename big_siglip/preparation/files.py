"""Files that are there whole or not at all."""

import os
import uuid

from etils import epath


def write_whole(path: epath.Path, data: bytes) -> None:
  """Writes beside the file, then renames: a killed process leaves no half.

  Workers that write the same file at once write the same bytes.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.parent / f".{path.name}.{uuid.uuid4().hex}"
  part.write_bytes(data)
  part.replace(path)


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path lies in a bucket."""
  return "://" in os.fspath(path)
