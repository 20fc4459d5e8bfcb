"""A view of images: one square of pixels of each."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from big_siglip.data import fast_images, images, squares
from big_siglip.data.batch import Batch, Field, Fields
from big_siglip.data.decoding import LazyImage
from big_siglip.data.views.view import Sample, Streams
from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Resizes a random crop, or the whole image, to a square.

  Attributes:
    size: side of the result in pixels.
    resize: see `images.resize`.
    crop_min_area: the least share of the area that a random crop keeps; 1.0
      for what evaluations see.
    flip: mirror every other image. Not for captions with left and right.
    name: of the array that it makes, uint8 [n, size, size, 3].
    crop: see `squares.Square`, as the next two; random crops go without them.
    crop_fraction: the same.
    fill: the same.
  """

  size: int
  resize: str = "bilinear"
  crop_min_area: float = 1.0
  flip: bool = False
  name: str = "image"
  crop: str = "none"
  crop_fraction: float = 1.0
  fill: tuple[int, ...] = squares.BLACK

  def fields(self, batch: int) -> Fields:
    """See `View`."""
    del batch
    return {self.name: Field((self.size, self.size, 3), "uint8")}

  def scale(
    self, height: int, width: int, rng: np.random.Generator
  ) -> float | None:
    """See `ImageView`."""
    if self.resize in images.SHARP:
      return None  # Every pixel counts.
    box = self._box(height, width, rng)
    if box is not None and not _inside(box, height, width):
      return None
    return self._scale(box or (0, 0, width, height))

  @property
  def is_whole(self) -> bool:
    """Whether all of every image is squashed: fractions of it stay the same."""
    plain = self.crop == "none" and self.crop_fraction == 1
    return plain and self.crop_min_area == 1 and not self.flip

  def geometry(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[images.Box | None, bool]:
    """Returns what it shows of an image, and whether mirrored.

    It draws what it draws when called, with an equal generator. For what goes
    with the image: masks, boxes.

    Args:
      height: of the whole image, in pixels.
      width: the same.
      rng: its generator.

    Returns:
      The part that is resized to a square (None: all; it may reach beyond the
      image), and whether left and right are exchanged.
    """
    box = self._box(height, width, rng)
    return box, self.flip and bool(rng.random() < 0.5)

  def __call__(
    self,
    examples: Sequence[Sample],
    rngs: Sequence[np.random.Generator] | Streams,
    out: Batch,
  ) -> dict[int, BadExample]:
    """See `View`."""
    draws = self.flip or self.crop_min_area < 1.0
    bad: dict[int, BadExample] = {}
    for i, example in enumerate(examples):
      try:
        self._write(
          example.image, rngs[i] if draws else None, out[self.name][i]
        )
      except images.BadImage as error:
        bad[i] = error
    return bad

  def _write(self, image: LazyImage, rng, out: np.ndarray) -> None:
    seen = self._see(image, rng, out)
    if self.flip and rng.random() < 0.5:
      seen = images.flip(seen)
    if seen is not out:
      out[:] = seen

  def _see(self, image: LazyImage, rng, out: np.ndarray) -> np.ndarray:
    """Returns uint8 [size, size, 3]: `out`, if it was written to.

    The box that is cut out is the same share of the image with all decoders.
    """
    if image.fast and self.resize not in images.SHARP:
      height, width = image.shape()
      box = self._box(height, width, rng)
      whole = left, top, right, bottom = box or (0, 0, width, height)
      if _inside(whole, height, width):
        pixels, scale = image.decoded(self._scale(whole))
        if scale < 1:
          box = left * scale, top * scale, right * scale, bottom * scale
        if self.resize == "bilinear":
          return fast_images.resize(pixels, self.size, box, out)
        return images.resize(pixels, self.size, self.resize, box)
    if self.resize == images.BIG_VISION:
      pixels = image.as_big_vision()
    else:
      pixels, _ = image.decoded()
    if self.crop_min_area < 1.0:
      box = self._box(pixels.shape[0], pixels.shape[1], rng)
      return images.resize(pixels, self.size, self.resize, box)
    return self._square()(pixels)

  def _square(self) -> squares.Square:
    return squares.Square(
      self.size, self.resize, self.crop, self.crop_fraction, self.fill
    )

  def _box(self, height: int, width: int, rng) -> images.Box | None:
    if self.crop_min_area == 1.0:
      return self._square().box(height, width)
    return images.random_box(height, width, rng, self.crop_min_area)

  def _scale(self, box: images.Box) -> float:
    left, top, right, bottom = box
    return fast_images.scale(bottom - top, right - left, self.size)


def _inside(box: images.Box, height: int, width: int) -> bool:
  """Returns whether no part of a box lies outside the image."""
  left, top, right, bottom = box
  slack = 1e-6 * max(height, width)  # Of rounding.
  return min(left, top) >= -slack and (
    right <= width + slack and bottom <= height + slack
  )
