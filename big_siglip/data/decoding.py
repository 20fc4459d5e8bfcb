"""An image that several views look at, decoded once for all of them."""

import math
from typing import Any

import numpy as np

from big_siglip.data import fast_images, images

_EXACT = math.inf  # More than any scale: decoded by Pillow.


class LazyImage:
  """An encoded image, decoded when first looked at.

  Attributes:
    encoded: its bytes, as the source gave them.
    fast: whether libjpeg-turbo may decode it, at a part of its size: see
      `fast_images`. Else Pillow decodes it, exactly.
  """

  __slots__ = (
    "_big_vision",
    "_decoded",
    "_header",
    "_needed",
    "_pixels",
    "encoded",
    "fast",
  )

  def __init__(self, encoded: Any, fast: bool = False):
    """Reads the header that `fast_images` needs, and decodes nothing yet."""
    self.encoded = encoded
    self.fast = fast
    self._header: tuple[int, int] | None = None  # Then Pillow decodes.
    if fast and isinstance(encoded, bytes):
      self._header = fast_images.shape(encoded)
    self._needed = 0.0
    self._pixels: np.ndarray | None = None
    self._decoded = 0.0
    self._big_vision: np.ndarray | None = None

  def shape(self) -> tuple[int, int]:
    """Returns (height, width) of the whole image, in pixels.

    Raises:
      BadImage: it cannot be decoded.
    """
    if self._header:
      return self._header
    height, width, _ = self.decoded()[0].shape
    return height, width

  def need(self, scale: float | None) -> None:
    """Notes how many pixels will be asked for, before any are decoded.

    Args:
      scale: the share of each side, of `fast_images.scale`; None: all pixels,
        exactly as Pillow decodes them.
    """
    self._needed = max(self._needed, _EXACT if scale is None else scale)

  def decoded(self, scale: float | None = None) -> tuple[np.ndarray, float]:
    """Returns RGB uint8 [H, W, 3], and at which share of its sides.

    Args:
      scale: the least that will do, as in `need`.

    Raises:
      BadImage: it cannot be decoded.
    """
    self.need(scale)
    if self._pixels is None or self._decoded < self._needed:
      self._decode()
    return self._pixels, min(self._decoded, 1.0)

  def as_big_vision(self) -> np.ndarray:
    """Returns RGB uint8 [H, W, 3]: see `fast_images.decode_as_big_vision`.

    Raises:
      BadImage: it cannot be decoded.
    """
    if self._big_vision is None:
      self._big_vision = fast_images.decode_as_big_vision(self.encoded)
    return self._big_vision

  def forget(self) -> None:
    """Drops the pixels."""
    self._pixels = self._big_vision = None

  def _decode(self) -> None:
    if self._header and self._needed <= 1:
      self._pixels = fast_images.decode(
        self.encoded, *self._header, self._needed
      )
      if self._pixels is not None:
        self._decoded = self._needed
        return
    self._pixels = images.decode(self.encoded)
    self._decoded = _EXACT


def decode(
  encoded: bytes, resize: str, max_pixels: int = images.MAX_PIXELS
) -> np.ndarray:
  """Returns RGB uint8 [H, W, 3] as evaluations see it.

  Args:
    encoded: an image.
    resize: `config.data.resize`, of which big_vision has a decoder of its own.
    max_pixels: larger images are refused before their pixels are decoded.

  Raises:
    BadImage: it cannot be decoded.
  """
  if resize == images.BIG_VISION:
    return fast_images.decode_as_big_vision(encoded, max_pixels)
  return images.decode(encoded, max_pixels)
