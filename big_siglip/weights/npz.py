"""Archives of arrays (.npz), as big_vision writes; one array at a time."""

from collections.abc import Callable, Iterable
import pathlib
import tokenize
import zipfile
import zlib

import ml_dtypes
import numpy as np

from big_siglip.errors import UserError

# What damaged archives, and arrays' headers in them, make their readers raise.
_DAMAGED_NPZ = (
  zipfile.BadZipFile,
  zlib.error,
  OSError,
  ValueError,
  EOFError,
  RuntimeError,  # Encrypted, or compressed in a way that Python does not know.
  SyntaxError,
  tokenize.TokenError,
  MemoryError,
)
Shape = tuple[int, ...]


class Npz:
  """A .npz file, as big_vision writes."""

  def __init__(self, path: pathlib.Path):
    """Reads the list of arrays and their headers.

    Raises:
      UserError: not a .npz, truncated, or it holds Python objects.
    """
    self.path = str(path)
    self._names: dict[str, str] = {}
    self._shapes: dict[str, Shape] = {}
    try:
      self._file = zipfile.ZipFile(path)
      names = self._file.namelist()
      # Beside these lies a trainer's state, of which nothing is read.
      beside = any(name.startswith("params/") for name in names)
      for name in names:
        if not name.endswith(".npy"):
          raise UserError(f"{path}: holds {name}, which is no array")
        key = name.removesuffix(".npy")
        if key in self._names:
          raise UserError(f"{path}: holds {key} twice")
        shape, is_object = self._read_header(name)
        if is_object and beside and not key.startswith("params/"):
          continue
        if is_object:
          raise UserError(
            f"{path}: {name} holds Python objects, which are never loaded"
          )
        self._names[key] = name
        self._shapes[key] = shape
    except UserError:
      raise
    except _DAMAGED_NPZ as error:
      raise UserError(f"{path}: is no whole .npz file ({error})") from error

  def _read_header(self, name: str) -> tuple[Shape, bool]:
    """Returns an array's shape, and whether it is of Python objects."""
    with self._file.open(name) as stream:
      version = np.lib.format.read_magic(stream)
      header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
      )
      shape, _, dtype = header(stream)
    return shape, dtype.hasobject

  def shapes(self) -> dict[str, Shape]:
    """Returns {key: shape}."""
    return dict(self._shapes)

  def read(self, key: str) -> np.ndarray:
    """Returns one array; two bytes of unknown type are bfloat16."""
    try:
      with self._file.open(self._names[key]) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    except _DAMAGED_NPZ as error:
      raise UserError(f"{self.path}: {key} is damaged ({error})") from error
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
      array = array.view(ml_dtypes.bfloat16)
    return array


def save_npz(
  path: pathlib.Path,
  tensors: Iterable[tuple[str, Shape, Callable[[], np.ndarray]]],
) -> None:
  """Writes float32 arrays, one at a time, and gives the file its name last."""
  partial = path.with_name(f".{path.name}.partial")
  with zipfile.ZipFile(partial, "w", allowZip64=True) as file:
    for key, _, array in tensors:
      with file.open(f"{key}.npy", "w", force_zip64=True) as stream:
        value = np.asarray(array(), np.float32, order="C")
        np.lib.format.write_array(stream, value, allow_pickle=False)
  partial.replace(path)
