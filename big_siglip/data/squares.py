"""How an image of any shape becomes a square, by the rules of four projects.

Shape letters: H and W pixels of an image, S of the square.
"""

import dataclasses

import numpy as np

from big_siglip.data import images
from big_siglip.errors import UserError
from big_siglip.schema.words import CROPS

BLACK = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Square:
  """Resizes a whole image, then keeps its middle, filled where it is short.

  Attributes:
    size: S, in pixels.
    resize: see `images.resize`.
    crop: "none": both sides are squashed; "center" and "shortest": the shorter
      side is resized, as transformers' CLIPImageProcessor and as open_clip do
      (both round, in other ways); "longest": the longer one, as open_clip.
    crop_fraction: S by the side that is resized; less than 1 cuts a border off.
    fill: red, green and blue of what lies outside the image, 0 to 255.
  """

  size: int
  resize: str = "bilinear"
  crop: str = "none"
  crop_fraction: float = 1.0
  fill: tuple[int, ...] = BLACK

  def __call__(self, image: np.ndarray) -> np.ndarray:
    """Returns uint8 [S, S, 3] of uint8 [H, W, 3].

    Raises:
      BadImage: it is so long that it would take too much room when resized.
    """
    shape = self.resized(*image.shape[:2])
    images.check_size(shape[::-1], images.MAX_PIXELS)
    return self._middle(images.resize(image, shape, self.resize))

  def resized(self, height: int, width: int) -> tuple[int, int]:
    """Returns (height, width) of the whole image, resized."""
    side = round(self.size / self.crop_fraction)
    if self.crop == "none":
      return side, side
    if self.crop == "longest":
      shrink = max(height / side, width / side)
      return max(1, round(height / shrink)), max(1, round(width / shrink))
    if self.crop not in CROPS:
      allowed = ", ".join(CROPS)
      raise UserError(
        f"config.data.crop={self.crop!r}: must be one of {allowed}"
      )
    if height < width:
      return side, int(side * width / height)
    return int(side * height / width), side

  def box(self, height: int, width: int) -> images.Box | None:
    """Returns what is kept of an image; None: all of it, squashed.

    It may reach beyond the image.
    """
    if self.crop == "none" and self.crop_fraction == 1:
      return None
    tall, wide = self.resized(height, width)
    top = self.start(tall) * height / tall
    left = self.start(wide) * width / wide
    across, down = self.size * width / wide, self.size * height / tall
    return left, top, left + across, top + down

  def start(self, length: int) -> int:
    """Returns the first kept pixel of a side; negative: so many are filled."""
    spare = length - self.size
    if self.crop in ("none", "center"):  # transformers
      return spare // 2
    # torchvision's, which open_clip and timm use.
    return round(spare / 2) if spare > 0 else -(-spare // 2)

  def _middle(self, image: np.ndarray) -> np.ndarray:
    if image.shape[:2] == (self.size, self.size):
      return image
    square = np.empty((self.size, self.size, 3), np.uint8)
    square[:] = self.fill
    kept, places = [], []
    for length in image.shape[:2]:
      start = self.start(length)
      first, last = max(start, 0), min(start + self.size, length)
      kept.append(slice(first, last))
      places.append(slice(first - start, last - start))
    square[tuple(places)] = image[tuple(kept)]
    return square
