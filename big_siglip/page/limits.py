"""How much the page takes at once, and which images."""

import dataclasses
import io

import numpy as np
from PIL import Image

from big_siglip.data import decoding
from big_siglip.data.images import BadImage

# Pillow knows dozens more. Some start other programs (EPS: Ghostscript), and
# few have seen as many hostile files as these.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


@dataclasses.dataclass(frozen=True)
class Limits:
  """What is refused beyond; the page learns them from /healthz.

  Attributes:
    upload_bytes: of a request.
    upload_seconds: that a request may take to arrive.
    uploads: requests with images, those that still arrive with them.
    image_bytes: of one image's file.
    images: of a request.
    pixels: of one image.
    labels: of a request.
    maps: of a request, one a label.
    label_length: characters of a label, a text or a query.
    queries: lines and images of a search.
    results: of a search.
    shown_bytes: of an embedded image's file.
    waiting: requests for the device, the one that it answers with them.
  """

  upload_bytes: int = 64 * 2**20
  upload_seconds: float = 120.0
  uploads: int = 16
  image_bytes: int = 16 * 2**20
  images: int = 64
  pixels: int = 50_000_000
  labels: int = 1_000
  maps: int = 64
  label_length: int = 300
  queries: int = 16
  results: int = 100
  shown_bytes: int = 64 * 2**20
  waiting: int = 16


def decode(data: bytes, limits: Limits, resize: str = "") -> np.ndarray:
  """Returns an image that others sent, as uint8 [H, W, 3].

  Args:
    data: its file.
    limits: what is refused.
    resize: see `decoding.decode`.

  Raises:
    BadImage: it is too large, or no image of one of `FORMATS`.
  """
  if not data:
    raise BadImage("is empty")
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      width, height = image.size  # Nothing is decoded yet.
  except Image.DecompressionBombError as error:
    raise BadImage(f"has more than {limits.pixels:,} pixels") from error
  except Exception as error:  # As many kinds as in `images.decode`.
    names = ", ".join(FORMATS)
    raise BadImage(f"is no image that can be read ({names})") from error
  if width * height > limits.pixels:
    raise BadImage(
      f"has {width:,} x {height:,} pixels; at most {limits.pixels:,} in all"
    )
  try:
    return decoding.decode(data, resize, limits.pixels)
  except BadImage as error:  # Pillow's words for it are of no use to a reader.
    raise BadImage("is damaged, or cut off") from error
