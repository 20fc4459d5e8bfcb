"""Checkpoints of big_vision's trainers: a folder of zarr arrays.

`checkpoint.bv-000010000`, with a folder for each array, whose name has "~" for
"/" (`tssave` of big_vision's utils.py). `checkpoint.bv-LAST` names the newest.
"""

import json
import math
import pathlib

import numpy as np
import tensorstore

from big_siglip.errors import UserError

Shape = tuple[int, ...]
_HEADER = ".zarray"
_LAST = "checkpoint.bv-LAST"


def find(place: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of a checkpoint that a path means, or None.

  Args:
    place: the folder itself, or that of a run, which may hold several, or
      RUN/checkpoint.bv, as big_vision's own configs have it.
  """
  if place.is_dir() and any(place.glob(f"params~*/{_HEADER}")):
    return place
  for last in (place / _LAST, place.with_name(f"{place.name}-LAST")):
    if last.is_file():
      text = last.read_text(errors="replace").strip()
      folder = last.with_name(last.name.removesuffix("LAST") + text)
      if folder.parent == last.parent and folder.is_dir():
        return folder
  return None


class Zarr:
  """The arrays of a checkpoint."""

  def __init__(self, path: pathlib.Path):
    """Reads the headers.

    Raises:
      UserError: one is damaged, or an array is not whole.
    """
    self.path = str(path)
    self._folders: dict[str, pathlib.Path] = {}
    self._shapes: dict[str, Shape] = {}
    for header in sorted(path.glob(f"*/{_HEADER}")):
      key = header.parent.name.replace("~", "/")
      self._folders[key] = header.parent
      self._shapes[key] = _shape(header)

  def shapes(self) -> dict[str, Shape]:
    """Returns {key: shape}."""
    return dict(self._shapes)

  def read(self, key: str) -> np.ndarray:
    """Returns one array."""
    store = {"driver": "file", "path": str(self._folders[key])}
    try:
      spec = {"driver": "zarr", "kvstore": store}
      array = tensorstore.open(spec, read=True).result()
      return np.asarray(array.read().result())
    except ValueError as error:
      reason = str(error).splitlines()[0]
      raise UserError(f"{self.path}: {key} is damaged ({reason})") from error


def _shape(header: pathlib.Path) -> Shape:
  """Returns an array's shape, after counting the files that hold it."""
  try:
    said = json.loads(header.read_text())
    shape, chunks = tuple(said["shape"]), tuple(said["chunks"])
    count = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
  except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
    raise UserError(
      f"{header}: is no header of an array ({error!r})"
    ) from error
  files = sum(not file.name.startswith(".") for file in header.parent.iterdir())
  if files < count:  # Read as zeros else.
    raise UserError(
      f"{header.parent}: has {files} of the {count} files of an array of shape "
      f"{list(shape)}; the checkpoint is not whole"
    )
  return shape
