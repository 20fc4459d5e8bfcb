"""A view of images: one square of pixels of each."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from big_siglip.data import fast_images, images
from big_siglip.data.batch import Batch, Field, Fields
from big_siglip.data.decoding import LazyImage
from big_siglip.data.views.view import Sample, Streams
from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Resizes a random crop, or the whole image, to a square.

  Attributes:
    size: side of the result in pixels.
    resize: "bilinear", "bicubic" or "big_vision".
    crop_min_area: the least share of the area that a random crop keeps; 1.0
      for a plain squash of the whole image, as SigLIP does.
    flip: mirror every other image. Not for captions with left and right.
    name: of the array that it makes, uint8 [n, size, size, 3].
  """

  size: int
  resize: str = "bilinear"
  crop_min_area: float = 1.0
  flip: bool = False
  name: str = "image"

  def fields(self, batch: int) -> Fields:
    """See `View`."""
    del batch
    return {self.name: Field((self.size, self.size, 3), "uint8")}

  def scale(
    self, height: int, width: int, rng: np.random.Generator
  ) -> float | None:
    """See `ImageView`."""
    if self.resize == images.BIG_VISION:
      return None  # Without antialiasing every pixel counts.
    box = self._box(height, width, rng)
    return self._scale(box or (0, 0, width, height))

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
    pixels, box = self._cut(image, rng)
    if image.fast and self.resize == "bilinear":
      seen = fast_images.resize(pixels, self.size, box, out)
    else:
      seen = images.resize(pixels, self.size, self.resize, box)
    if self.flip and rng.random() < 0.5:
      seen = images.flip(seen)
    if seen is not out:
      out[:] = seen

  def _cut(self, image: LazyImage, rng) -> tuple[np.ndarray, images.Box | None]:
    """Returns uint8 [H, W, 3], and the box to cut from it (None: all).

    The box is the same share of the image with either decoder.
    """
    if not image.fast or self.resize == images.BIG_VISION:
      pixels, _ = image.decoded()
      return pixels, self._box(*pixels.shape[:2], rng)
    height, width = image.shape()
    box = self._box(height, width, rng)
    whole = left, top, right, bottom = box or (0, 0, width, height)
    pixels, scale = image.decoded(self._scale(whole))
    if scale < 1:
      box = left * scale, top * scale, right * scale, bottom * scale
    return pixels, box

  def _box(self, height: int, width: int, rng) -> images.Box | None:
    if self.crop_min_area == 1.0:
      return None
    return images.random_box(height, width, rng, self.crop_min_area)

  def _scale(self, box: images.Box) -> float:
    left, top, right, bottom = box
    return fast_images.scale(bottom - top, right - left, self.size)
