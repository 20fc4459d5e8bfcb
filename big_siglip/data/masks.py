"""Masks: the class of every pixel, as data sets store them.

A mask has one channel. Its numbers are classes, and `IGNORED` is no class: who
drew it did not want to say. Nothing is ever interpolated between two classes.

Shape letters: H and W pixels of a mask.
"""

from collections.abc import Mapping
import io
from typing import Any

import numpy as np
from PIL import Image

from big_siglip.data import images
from big_siglip.data.images import BadImage

IGNORED = 255


def decode(value: Any) -> np.ndarray:
  """Returns a mask, uint8 [H, W].

  Args:
    value: an encoded image of one channel, of palette entries (as PASCAL VOC
      has them: the entry is the class, not its colour) or of 16-bit numbers; or
      integers [H, W] or [H, W, 1].

  Raises:
    BadImage: it is none of these, or holds a number above 255.
  """
  if isinstance(value, Mapping):  # The Hub's {bytes, path}.
    value = value.get("bytes")
  if isinstance(value, bytes):
    value = _read(value)
  try:
    array = np.asarray(value)
  except ValueError as error:
    raise BadImage("its mask is no array [H, W]") from error
  if array.ndim == 3 and array.shape[2] == 1:
    array = array[..., 0]
  if array.ndim != 2 or not array.size:
    raise BadImage(f"its mask has shape {list(array.shape)}, must be [H, W]")
  if array.dtype == bool:
    return array.astype(np.uint8)
  if array.dtype.kind not in "iu":
    raise BadImage(f"its mask holds {array.dtype}, must be classes, 0 to 255")
  low, high = int(array.min()), int(array.max())
  if low < 0 or high > IGNORED:
    raise BadImage(f"its mask holds {low} to {high}, must be classes, 0 to 255")
  return array.astype(np.uint8)


def _read(data: bytes) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(data)) as image:
      images.check_size(image.size, images.MAX_PIXELS)
      image.load()
      if image.mode in ("L", "P", "1", "I") or image.mode.startswith("I;16"):
        return np.asarray(image)
      pixels = np.asarray(image)
  except (BadImage, MemoryError):
    raise
  # As of images: damaged bytes raise nearly everything.
  except Exception as error:
    raise BadImage(f"its mask: {type(error).__name__}: {error}") from error
  if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
    return pixels[..., 0]  # Grey, saved with three equal channels.
  raise BadImage(
    f"its mask has colours ({image.mode}), must have one channel of classes"
  )


def resize(
  mask: np.ndarray, height: int, width: int, box: images.Box | None = None
) -> np.ndarray:
  """Returns the class at the middle of each new pixel; uint8 [height, width].

  Args:
    mask: uint8 [H, W].
    height: of the result.
    width: the same.
    box: the part to take, in pixels; where it reaches beyond the mask,
      `IGNORED`. None: all of it.
  """
  left, top, right, bottom = box or (0, 0, mask.shape[1], mask.shape[0])
  rows = _middles(top, bottom, height)
  columns = _middles(left, right, width)
  inside = np.logical_and.outer(
    (rows >= 0) & (rows < mask.shape[0]),
    (columns >= 0) & (columns < mask.shape[1]),
  )
  rows = rows.clip(0, mask.shape[0] - 1)
  columns = columns.clip(0, mask.shape[1] - 1)
  return np.where(inside, mask[np.ix_(rows, columns)], np.uint8(IGNORED))


def _middles(start: float, stop: float, count: int) -> np.ndarray:
  """Returns which old pixel the middle of each new one lies in."""
  step = (stop - start) / count
  return np.floor(start + (np.arange(count) + 0.5) * step).astype(np.int64)
