"""Small images that a page holds."""

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from big_siglip.data import images
from big_siglip.data.sources import Example
from big_siglip.errors import UserError

_SIDE = 128  # Pixels of the longer one.


class Picture(NamedTuple):
  """An image of the page.

  Attributes:
    uri: a data URI.
    alt: its right captions, for those who cannot see it.
    tiny: whether its pixels are to be seen as they are.
  """

  uri: str
  alt: str
  tiny: bool


def shrink(example: Example) -> np.ndarray:
  """Returns an image of at most `_SIDE` pixels a side; never enlarges.

  Raises:
    BadExample: it cannot be decoded.
    UserError: it is an embedding.
  """
  if isinstance(example.image, np.ndarray):
    raise UserError("holds embeddings, and no images")
  return shrink_bytes(example.image)


def shrink_bytes(data: bytes) -> np.ndarray:
  """Returns an encoded image as `shrink` does.

  Raises:
    BadImage: it cannot be decoded.
  """
  return images.thumbnail(data, _SIDE)


def picture(thumbnail: np.ndarray, alt: str) -> Picture:
  """Returns a small image, uint8 [h, w, 3], for the page."""
  data = base64.b64encode(_encode(thumbnail)).decode()
  tiny = max(thumbnail.shape) <= _SIDE // 2
  return Picture(f"data:image/webp;base64,{data}", alt, tiny)


def _encode(thumbnail: np.ndarray) -> bytes:
  """Returns a small WebP file; lossless where the image is tiny."""
  file = io.BytesIO()
  tiny = max(thumbnail.shape) <= _SIDE // 2
  options: dict[str, Any] = {"lossless": True} if tiny else {"quality": 72}
  Image.fromarray(thumbnail).save(file, format="WEBP", **options)
  return file.getvalue()
