"""A view of images: several random crops of each, from the original."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from big_siglip.data import fast_images, images
from big_siglip.data.batch import Batch, Field, Fields
from big_siglip.data.decoding import LazyImage
from big_siglip.data.views.view import Sample, Streams
from big_siglip.errors import BadExample

_MAX_ASPECT = 4 / 3  # Longer by shorter side: torchvision's.


@dataclasses.dataclass(frozen=True)
class Crops:
  """Resizes random parts of an image to squares: torchvision's crops.

  Attributes:
    name: of the array that it makes, uint8 [n, count, size, size, 3], and of
      its random stream.
    count: crops of an image.
    size: side of each in pixels.
    area: the least and the largest share of the image's area.
    flip: mirror every other crop.
    resize: "bilinear" or "bicubic".
  """

  name: str
  count: int
  size: int
  area: tuple[float, float]
  flip: bool = True
  resize: str = "bicubic"

  def fields(self, batch: int) -> Fields:
    """See `View`."""
    del batch
    return {self.name: Field((self.count, self.size, self.size, 3), "uint8")}

  def scale(
    self, height: int, width: int, rng: np.random.Generator
  ) -> float | None:
    """See `ImageView`."""
    return self._scale([box for box, _ in self.geometry(height, width, rng)])

  def geometry(
    self, height: int, width: int, rng: np.random.Generator
  ) -> list[tuple[images.Box, bool]]:
    """Returns each crop's part of an image, and whether it is mirrored.

    Args:
      height: of the whole image, in pixels.
      width: the same.
      rng: its generator.
    """
    found = []
    for _ in range(self.count):
      least, most = self.area
      box = images.random_box(
        height, width, rng, least, max_area=most, max_aspect=_MAX_ASPECT
      )
      mirrored = self.flip and bool(rng.random() < 0.5)
      found.append((box or _middle(height, width), mirrored))
    return found

  def __call__(
    self,
    examples: Sequence[Sample],
    rngs: Sequence[np.random.Generator] | Streams,
    out: Batch,
  ) -> dict[int, BadExample]:
    """See `View`."""
    bad: dict[int, BadExample] = {}
    for i, example in enumerate(examples):
      try:
        self._write(example.image, rngs[i], out[self.name][i])
      except images.BadImage as error:
        bad[i] = error
    return bad

  def _write(self, image: LazyImage, rng, out: np.ndarray) -> None:
    crops = self.geometry(*image.shape(), rng)
    boxes = [box for box, _ in crops]
    pixels, scale = image.decoded(self._scale(boxes) if image.fast else None)
    fast = image.fast and self.resize == "bilinear"
    for (box, mirrored), row in zip(crops, out, strict=True):
      box = tuple(side * scale for side in box)
      if fast:
        seen = fast_images.resize(pixels, self.size, box, row)
      else:
        seen = images.resize(pixels, self.size, self.resize, box)
      if mirrored:
        seen = images.flip(seen)
      if seen is not row:
        row[:] = seen

  def _scale(self, boxes: Sequence[images.Box]) -> float:
    return max(
      fast_images.scale(bottom - top, right - left, self.size)
      for left, top, right, bottom in boxes
    )


def _middle(height: int, width: int) -> images.Box:
  """Returns the largest box in the middle of an image that is not too long.

  Where no drawn one fits, as torchvision's RandomResizedCrop.
  """
  high = min(height, width * _MAX_ASPECT)
  wide = min(width, height * _MAX_ASPECT)
  left, top = (width - wide) / 2, (height - high) / 2
  return left, top, left + wide, top + high
