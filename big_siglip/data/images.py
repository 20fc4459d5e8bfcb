"""Decodes and augments one image: bytes or uint8 [H, W, 3] in, uint8 out.

Pillow does the work. It antialiases whenever it shrinks, as most SigLIP
re-implementations do; TensorFlow's resize, with which Google trained, does not.
`fast_images` does nearly the same in a third of the time, for training.
"""

import io
import math

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from big_siglip.data import image_files
from big_siglip.errors import BadExample, UserError
from big_siglip.schema.words import RESIZES

image_files.register_decoders()

# Pixels. Pillow itself starts to warn of decompression bombs here.
MAX_PIXELS = 89_478_485

# Pillow's filters; transformers resizes for SigLIP 2 with the first, and for
# SigLIP with the second.
RESIZE_METHODS = {
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "nearest": Image.Resampling.NEAREST,
  "lanczos": Image.Resampling.LANCZOS,
  "box": Image.Resampling.BOX,
  "hamming": Image.Resampling.HAMMING,
}
BIG_VISION = "big_vision"  # How Google trained both; see `_resize_big_vision`.
# What sees single pixels, so that an image decoded smaller will not do.
SHARP = ("nearest", "box", "hamming", BIG_VISION)

# What brings an image upright, by its EXIF orientation.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}

Box = tuple[float, float, float, float]  # left, top, right, bottom: pixels.


class BadImage(BadExample):
  """These bytes are no image that can be decoded whole."""

  def __init__(self, reason: str):
    super().__init__(reason, "image")


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """Returns the first frame as RGB uint8 [H, W, 3], upright.

  EXIF orientation is applied, transparency is laid over white, 16-bit grey is
  scaled down (Pillow alone would clip it).

  Args:
    data: an encoded image of any format that Pillow itself reads.
    max_pixels: larger images are refused before their pixels are decoded.

  Raises:
    BadImage: not an image, truncated, damaged or too large.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      if image.format == "EPS":  # Pillow hands it to Ghostscript.
        raise BadImage("is EPS: a program, which is not run")
      check_size(image.size, max_pixels)
      image.load()
      return np.asarray(_to_rgb(_upright(image)))
  except (BadImage, MemoryError):
    raise
  except UnidentifiedImageError as e:  # Its own words name a Python object.
    raise BadImage(image_files.why_unknown(data)) from e
  # Pillow's decoders meet damaged bytes with nearly every exception there is:
  # OSError, SyntaxError, struct.error, IndexError, DecompressionBombError ...
  except Exception as e:
    raise BadImage(f"{type(e).__name__}: {e}") from e


def size_of(data: bytes) -> tuple[int, int] | tuple[None, None]:
  """Returns (width, height) of an image, upright, without decoding it.

  Both are None where its header cannot be read.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      width, height = image.size
      # From 5 on the image lies on its side.
      turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
      return (height, width) if turned else (width, height)
  except Exception:  # Of damaged bytes nearly every one; `decode` names it.
    return None, None


def from_pillow(image: Image.Image) -> np.ndarray:
  """Returns an opened image as `decode` would its file: uint8 [H, W, 3].

  Raises:
    BadImage: its pixels cannot be read or have no known range.
  """
  check_size(image.size, MAX_PIXELS)
  try:
    image.load()
    return np.asarray(_to_rgb(_upright(image)))
  except OSError as e:
    raise BadImage(f"{type(e).__name__}: {e}") from e


def resize(
  image: np.ndarray,
  size: int | tuple[int, int],
  method: str = "bilinear",
  box: Box | None = None,
) -> np.ndarray:
  """Squashes to `size`, whatever the aspect ratio, as SigLIP does.

  Args:
    image: uint8 [H, W, 3].
    size: side in pixels, or (height, width).
    method: "big_vision", or one of `RESIZE_METHODS`.
    box: what to cut out first; None for nothing.

  Returns:
    uint8 [height, width, 3].
  """
  height, width = (size, size) if isinstance(size, int) else size
  if box is None and image.shape[:2] == (height, width):
    return image
  if box:  # Rounding may leave an edge a hair outside, which Pillow refuses.
    box = (*box[:2], min(box[2], image.shape[1]), min(box[3], image.shape[0]))
  if method == BIG_VISION:
    return _resize_big_vision(image, (height, width), box)
  if method not in RESIZE_METHODS:
    allowed = ", ".join(RESIZES)
    raise UserError(f"config.data.resize={method!r}: must be one of {allowed}")
  resized = Image.fromarray(image).resize(
    (width, height), RESIZE_METHODS[method], box=box
  )
  return np.asarray(resized)


def thumbnail(data: bytes, side: int) -> np.ndarray:
  """Returns a file's image, of at most `side` pixels a side; never enlarges.

  Raises:
    BadImage: it cannot be decoded.
  """
  image = decode(data)
  height, width = image.shape[:2]
  factor = min(side / max(height, width), 1.0)
  size = (max(round(height * factor), 1), max(round(width * factor), 1))
  return resize(image, size, "bicubic")


def random_box(
  height: int,
  width: int,
  rng: np.random.Generator,
  min_area: float,
  *,
  max_area: float = 1.0,
  max_aspect: float = 4 / 3,
) -> Box | None:
  """Draws what an "Inception crop" cuts out and squashes to a square.

  The box's share of the area is uniform in [min_area, max_area] and its aspect
  ratio log-uniform in [1 / max_aspect, max_aspect]: Szegedy et al. 2014
  (arXiv:1409.4842, section 6). Boxes lie between pixels, so even images of few
  pixels get a continuous range of crops.

  Args:
    height: of the image, in pixels.
    width: the same.
    rng: where all randomness comes from.
    min_area: in (0, max_area].
    max_area: at most 1.
    max_aspect: at least 1.

  Returns:
    The box; None, the whole image, where ten draws do not fit into it.
  """
  for _ in range(10):
    area = rng.uniform(min_area, max_area) * height * width
    log_aspect = rng.uniform(-math.log(max_aspect), math.log(max_aspect))
    box_width = math.sqrt(area * math.exp(log_aspect))
    box_height = area / box_width
    if box_width <= width and box_height <= height:
      left = rng.uniform(0, width - box_width)
      top = rng.uniform(0, height - box_height)
      return left, top, left + box_width, top + box_height
  return None


def flip(image: np.ndarray) -> np.ndarray:
  """Returns the mirror image, left and right exchanged; [H, W, 3]."""
  return np.ascontiguousarray(image[:, ::-1])


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
  """Returns uint8 [H, W, 3] upright; `orientation`: as EXIF has it."""
  turn = _TURNS.get(orientation)
  if turn is None:
    return image
  return np.asarray(Image.fromarray(image).transpose(turn))


def check_size(size: tuple[int, int], max_pixels: int) -> None:
  """Refuses (width, height) that hold nothing, or too much.

  Raises:
    BadImage: they do.
  """
  width, height = size
  if width < 1 or height < 1:
    raise BadImage(f"has no pixels ({width}x{height})")
  if width * height > max_pixels:
    raise BadImage(f"{width}x{height} is more than {max_pixels} pixels")


def _upright(image: Image.Image) -> Image.Image:
  """Turns a loaded image as its EXIF orientation says, if that can be read.

  Not by ImageOps.exif_transpose, which writes all EXIF data anew: one odd field
  in it, as cameras and editors leave, and the photo would be lost.
  """
  try:
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
  except Exception:  # Damaged in one of many ways; the pixels are not.
    return image
  return image.transpose(turn) if turn is not None else image


def _to_rgb(image: Image.Image) -> Image.Image:
  """Converts any of Pillow's modes to RGB without losing range or alpha."""
  if image.mode == "F":
    raise BadImage("floating-point pixels have no known range")
  if image.mode == "I" or image.mode.startswith("I;16"):
    levels = np.asarray(image).astype(np.int64)
    grey = np.clip(levels, 0, 65_535) // 257
    if "transparency" in image.info:  # A level, of 16-bit PNG files.
      grey[levels == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
  return image if image.mode == "RGB" else image.convert("RGB")


def _resize_big_vision(
  image: np.ndarray,
  size: tuple[int, int],
  box: Box | None,
) -> np.ndarray:
  """Resizes as `resize` of big_vision's pp/ops_image.py.

  tf.image.resize, bilinear between the two nearest pixels however much it
  shrinks (no antialiasing), and fractions cut off in the cast back to uint8.
  """
  left, top, right, bottom = box or (0, 0, image.shape[1], image.shape[0])
  rows = _between(top, bottom, size[0], image.shape[0])
  columns = _between(left, right, size[1], image.shape[1])
  above, below = (
    _interpolate(image[row].astype(np.float32), *columns) for row in rows[:2]
  )
  share = rows[2][:, None, None]
  return (above + (below - above) * share).astype(np.uint8)


def _interpolate(image, lower, upper, share):
  """Interpolates between columns, first of all, as TensorFlow does."""
  left, right = image[:, lower], image[:, upper]
  return left + (right - left) * share[None, :, None]


def _between(start: float, stop: float, count: int, length: int):
  """Returns each new pixel's two neighbours and the second one's share."""
  step = np.float32((stop - start) / count)
  position = np.float32(start) + (np.arange(count) + np.float32(0.5)) * step
  position = position.astype(np.float32) - np.float32(0.5)
  lower = np.floor(position)
  share = (position - lower).astype(np.float32)
  last = length - 1
  lower = lower.astype(np.int64)
  return np.clip(lower, 0, last), np.clip(lower + 1, 0, last), share
