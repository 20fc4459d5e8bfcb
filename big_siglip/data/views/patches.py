"""A view of images that keeps their shape: sequences of patches (NaFlex)."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from big_siglip.data import fast_images, images, lengths, patches
from big_siglip.data.batch import Batch, Field, Fields
from big_siglip.data.decoding import LazyImage
from big_siglip.data.views.view import Sample, Streams
from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class Patches:
  """Resizes an image, or a part of it, to whole patches; see `data.patches`.

  Attributes:
    lengths: of a sequence; one of them is drawn for each batch.
    patch: p, pixels along a patch's side.
    seed: of the run, by which it is drawn.
    resize: see `images.resize`.
    crop_min_area: the least share of the area that a random crop keeps, which
      has the image's own shape; 1.0: no crop.
    flip: mirror every other image. Not for captions with left and right.
    name: what its random stream is called.
  """

  lengths: tuple[int, ...]
  patch: int
  seed: int
  resize: str = "bilinear"
  crop_min_area: float = 1.0
  flip: bool = False
  name: str = "image"

  @property
  def is_whole(self) -> bool:
    """Whether it always shows the whole image, not mirrored."""
    return self.crop_min_area == 1.0 and not self.flip

  def fields(self, batch: int) -> Fields:
    """See `View`: "patches" uint8 [N, p * p * 3] and "grid" int32 [2]."""
    length = lengths.drawn(self.lengths, self.seed, batch)
    return {
      "patches": Field((length, 3 * self.patch**2), "uint8"),
      "grid": Field((2,), "int32"),
    }

  def scale(
    self, height: int, width: int, rng: np.random.Generator
  ) -> float | None:
    """See `ImageView`: of the longest sequence, whichever will be drawn."""
    box = self._box(height, width, rng)
    try:
      return self._scale(box, max(self.lengths))
    except BadExample:  # Told when it is called.
      return None

  def geometry(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[images.Box, bool]:
    """Returns what it shows of an image, and whether mirrored.

    It draws what it draws when called, with an equal generator. For what goes
    with the image: boxes.

    Args:
      height: of the whole image, in pixels.
      width: the same.
      rng: its generator.
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
    bad: dict[int, BadExample] = {}
    for i, example in enumerate(examples):
      rng = None if self.is_whole else rngs[i]
      try:
        seen = self._see(example.image, rng, len(out["patches"][i]))
      except BadExample as error:
        bad[i] = error
        continue
      patches.cut(seen, self.patch, len(out["patches"][i]), out["patches"][i])
      out["grid"][i] = np.array(seen.shape[:2]) // self.patch
    return bad

  def _see(self, image: LazyImage, rng, length: int) -> np.ndarray:
    """Returns uint8 [rows * p, columns * p, 3]."""
    if self.resize == images.BIG_VISION:
      pixels, share = image.as_big_vision(), 1.0
      height, width = pixels.shape[:2]
      box = self._box(height, width, rng)
    else:
      height, width = image.shape()
      box = self._box(height, width, rng)
      scale = None
      if image.fast:
        scale = self._scale(box, length)
      pixels, share = image.decoded(scale)
    size = self._size(box, length)
    whole = box == (0, 0, width, height)
    # Rounded up when decoded, so that the last row may lie beyond the image.
    box = None if whole and share == 1 else tuple(side * share for side in box)
    seen = images.resize(pixels, size, self.resize, box)
    if self.flip and rng.random() < 0.5:
      seen = images.flip(seen)
    return seen

  def _size(self, box: images.Box, length: int) -> tuple[int, int]:
    left, top, right, bottom = box
    # Of whole pixels: the grid is that of an image of this size.
    height, width = max(1, round(bottom - top)), max(1, round(right - left))
    grid = patches.grid_of(height, width, self.patch, length)
    return grid[0] * self.patch, grid[1] * self.patch

  def _scale(self, box: images.Box, length: int) -> float | None:
    if self.resize in images.SHARP:
      return None  # Every pixel counts.
    tall, wide = self._size(box, length)
    left, top, right, bottom = box
    return fast_images.scale((bottom - top) / tall, (right - left) / wide, 1)

  def _box(self, height: int, width: int, rng) -> images.Box:
    if self.crop_min_area == 1.0:
      return 0, 0, width, height
    side = math.sqrt(rng.uniform(self.crop_min_area, 1.0))
    left, top = rng.uniform(0, 1 - side, 2) * (width, height)
    return left, top, left + side * width, top + side * height
