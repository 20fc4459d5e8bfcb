"""Decodes and resizes one image for training, in a third of Pillow's time.

libjpeg-turbo (simplejpeg) decodes JPEG files at a half, a quarter ... of their
size, and OpenCV resizes. docs/data-pipeline.md says what each gains, and how
far pixels lie from those of `images`, which is exact and what evaluations use.
"""

import functools
import io
import math
import struct
import types

import numpy as np
from PIL import ExifTags, Image
import simplejpeg

from big_siglip import extras
from big_siglip.data import images
from big_siglip.data.images import Box

# JPEG's markers (ITU T.81, table B.1).
_FRAMES = (0xC0, 0xC1, 0xC2)  # Baseline, extended, progressive.
_SCAN, _ADOBE = 0xDA, 0xEE
_YCC = 1  # What Adobe's segment calls the colors of nearly all files.
_FRAME = struct.Struct(">BHHB")

_LARGEST_SHRINK = 4  # Beyond, where few images are, Pillow resizes.


def shape(
  data: bytes, max_pixels: int = images.MAX_PIXELS
) -> tuple[int, int] | None:
  """Returns (height, width) of an image that `decode` takes; reads its header.

  Anything but an upright, sound 8-bit RGB or grey JPEG is Pillow's: None. So is
  what is too large; Pillow has the words for it.

  Args:
    data: an encoded image.
    max_pixels: that are decoded.
  """
  found, orientation = _plain_jpeg(data)
  if orientation != 1 or not 0 < math.prod(found) <= max_pixels:
    return None
  return found


@functools.cache
def opencv() -> types.ModuleType:
  """Returns OpenCV, which is loaded when it is first asked for.

  Raises:
    UserError: it is not installed.
  """
  with extras.needed_by("config.data.decoder='fast'"):
    import cv2
  # Every image has a thread already; a pool in each of them would only cost.
  cv2.setNumThreads(1)
  return cv2


def scale(height: float, width: float, size: int) -> float:
  """Returns the least scale at which `resize` to `size` loses nothing.

  JPEG's inverse DCT gives a half, a quarter or an eighth of the sides for less
  work. Scales in between save little time, and move pixels as far.

  Args:
    height: of what will be resized, in pixels of the whole image.
    width: the same.
    size: side in pixels of the result.

  Returns:
    1/8, 1/4, 1/2 or 1.
  """
  shrink = min(width / size, height / size)
  found = 1 / 8
  while found * shrink < 1 and found < 1:
    found *= 2
  return found


def decode(
  data: bytes, height: int, width: int, scale: float
) -> np.ndarray | None:
  """Returns a JPEG file's pixels at a part of its size, RGB uint8 [H, W, 3].

  None: libjpeg warns of it; Pillow knows what to refuse, and why.

  Args:
    data: an encoded image.
    height: `shape` of it.
    width: the same.
    scale: the share of its sides; rounded up, so that the last row and column
      may reach beyond the image.
  """
  try:
    return simplejpeg.decode_jpeg(
      data,
      min_height=math.ceil(height * scale),
      min_width=math.ceil(width * scale),
    )
  except ValueError:
    return None


def decode_as_big_vision(
  data: bytes, max_pixels: int = images.MAX_PIXELS
) -> np.ndarray:
  """Returns RGB uint8 [H, W, 3] as tf.image.decode_jpeg does, but upright.

  TensorFlow asks libjpeg for its fast integer DCT (INTEGER_FAST), whose pixels
  are 0.7 grey levels darker on average than those of the exact one. Where there
  is no choice, in all but plain JPEG files, this is `images.decode`.

  Args:
    data: an encoded image.
    max_pixels: that are decoded.

  Raises:
    BadImage: not an image, truncated, damaged or too large.
  """
  found, orientation = _plain_jpeg(data)
  if not 0 < math.prod(found) <= max_pixels:
    return images.decode(data, max_pixels)
  try:
    return images.turned(
      simplejpeg.decode_jpeg(data, fastdct=True), orientation
    )
  except ValueError:  # libjpeg warns of it; Pillow knows what to refuse.
    return images.decode(data, max_pixels)


def resize(
  image: np.ndarray,
  size: int,
  box: Box | None = None,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Squashes to a square nearly as Pillow's antialiased bilinear filter does.

  Pillow's filter is a triangle as wide as two new pixels. Here the image is
  blurred by a few taps, and then interpolated between its nearest pixels; the
  variances of the two add up to the triangle's.

  Args:
    image: uint8 [H, W, 3].
    size: side in pixels.
    box: what to cut out first; None for nothing.
    out: uint8 [size, size, 3] to write to, where OpenCV resizes.

  Returns:
    uint8 [size, size, 3]: `out`, if it was written to.
  """
  whole = (0, 0, image.shape[1], image.shape[0])
  left, top, right, bottom = box = box or whole
  across, down = (right - left) / size, (bottom - top) / size
  if max(across, down) > _LARGEST_SHRINK:
    return images.resize(image, size, box=box)
  cv2 = opencv()
  if max(across, down) > 1:
    image = cv2.sepFilter2D(
      image, -1, _taps(across), _taps(down), borderType=cv2.BORDER_REPLICATE
    )
  if box == whole:
    return cv2.resize(
      image, (size, size), dst=out, interpolation=cv2.INTER_LINEAR
    )
  # The edges of a box lie between pixels.
  old_of_new = np.array(
    [
      [across, 0, left + (across - 1) / 2],
      [0, down, top + (down - 1) / 2],
    ]
  )
  return cv2.warpAffine(
    image,
    old_of_new,
    (size, size),
    dst=out,
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REPLICATE,
  )


@functools.lru_cache(maxsize=256)
def _taps(shrink: float) -> np.ndarray:
  """Returns the filter that interpolation lacks: float32, an odd length.

  A triangle of half-width s has the variance s^2 / 6, and interpolation is one
  of half-width 1. Three taps reach 1/2, with which a shrink by 2 is exactly the
  triangle; more of them follow each other.
  """
  variance = max(shrink**2 - 1, 0) / 6
  count = max(1, math.ceil(2 * variance))  # OpenCV is slower with one tap.
  taps = np.ones(1)
  for _ in range(count):
    side = variance / count / 2
    taps = np.convolve(taps, [side, 1 - 2 * side, side])
  return taps.astype(np.float32)


def _plain_jpeg(data: bytes) -> tuple[tuple[int, int], int]:
  """Returns (height, width) and the EXIF orientation of a JPEG file.

  (0, 0), 0: simplejpeg may not decode it. Everything is read off the segments
  before the first scan, which is all that Pillow looks at; simplejpeg's own
  header has no orientation.
  """
  none = (0, 0), 0
  if not data.startswith(b"\xff\xd8"):
    return none
  shape, plain, place = (0, 0), False, 2
  try:
    while (kind := data[place + 1]) != _SCAN:
      if data[place] != 0xFF or not 0xC0 <= kind < 0xFF:
        return none
      if kind in _FRAMES:
        # Bits, height, width, number of colors; then three bytes for each.
        bits, height, width, colors = _FRAME.unpack_from(data, place + 4)
        ids = data[place + 10 : place + 10 + 3 * colors : 3]
        plain = bits == 8 and (colors == 1 or ids == b"\1\2\3")
        shape = height, width
      elif kind == _ADOBE and data[place + 15] != _YCC:
        return none
      place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    if not plain:
      return none
    header = data[:place]
    if b"Exif\0\0" in header or b"rientation" in header:
      with Image.open(io.BytesIO(data)) as image:
        return shape, image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # Whatever is wrong with it: Pillow says so.
    return none
  return shape, 1
