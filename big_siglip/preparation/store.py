"""Images that have been fetched, and what became of the others."""

import json

from etils import epath

from big_siglip.preparation.files import write_whole
from big_siglip.preparation.records import Fault

_FAULT = ".fault"


class Store:
  """A folder with a file for each image, written whole or not at all.

  What could not be fetched has a file that says why, so that a restart asks
  again only for what may have passed.
  """

  def __init__(self, folder: epath.PathLike, shrunk_to: int | None):
    # One folder may serve several data sets.
    kind = f"shrunk_to_{shrunk_to}" if shrunk_to else "whole"
    self._folder = epath.Path(folder) / kind

  def is_settled(self, key: str) -> bool:
    """Whether nothing is gained by asking for this image (again)."""
    if self._path(key).exists():
      return True
    fault = self.fault(key)
    return fault is not None and fault.lasting

  def image(self, key: str) -> bytes | None:
    """Returns the bytes that were saved, if any were."""
    try:
      return self._path(key).read_bytes()
    except FileNotFoundError:
      return None

  def fault(self, key: str) -> Fault | None:
    """Returns why there is no image, if that is known."""
    try:
      text = self._path(key + _FAULT).read_text()
    except FileNotFoundError:
      return None
    return Fault(**json.loads(text))

  def save(self, key: str, data: bytes) -> None:
    """Keeps an image."""
    write_whole(self._path(key), data)
    self._path(key + _FAULT).unlink(missing_ok=True)

  def save_fault(self, key: str, fault: Fault) -> None:
    """Keeps why there is none."""
    fields = dict(kind=fault.kind, detail=fault.detail, lasting=fault.lasting)
    write_whole(self._path(key + _FAULT), json.dumps(fields).encode())

  def _path(self, key: str) -> epath.Path:
    # 4,096 folders: some thousand files in each, for all of WIT.
    return self._folder / key[:3] / key
