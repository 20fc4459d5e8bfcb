"""Between the grid of patches and the pixels of an image; numpy alone.

Shape letters: h x w the grid of patches, H and W pixels, T values of a patch, C
classes.
"""

import dataclasses

import numpy as np

from big_siglip.data import masks, patches
from big_siglip.data.images import Box
from big_siglip.data.squares import Square


@dataclasses.dataclass(frozen=True)
class Grid:
  """Which part of an image a model's patches cover.

  Attributes:
    side: patches along a side, h = w.
    patch: pixels along a patch's side.
    square: how an image becomes what the model sees.
    length: patches of an image that keeps its shape (NaFlex), at most, in place
      of `side` and `square`; None: it becomes a square.
  """

  side: int
  patch: int
  square: Square
  length: int | None = None

  @property
  def most(self) -> int:
    """How many patches an image has, at most."""
    return self.length or self.side**2

  def of(self, height: int, width: int) -> tuple[int, int]:
    """Returns h and w of an image of so many pixels."""
    if self.length is None:
      return self.side, self.side
    return patches.grid_of(height, width, self.patch, self.length)

  def box(self, height: int, width: int) -> Box:
    """Returns what all patches cover of an image, in its pixels."""
    if self.length is not None:
      return 0.0, 0.0, width, height
    box = self.square.box(height, width) or (0.0, 0.0, width, height)
    left, top, right, bottom = box
    # A border of less than a patch is covered by none.
    share = self.side * self.patch / self.square.size
    right, bottom = left + (right - left) * share, top + (bottom - top) * share
    return left, top, right, bottom

  def to_pixels(
    self, values: np.ndarray, height: int, width: int
  ) -> np.ndarray:
    """Returns values of pixels, bilinear between the middles of patches.

    Pixels that no patch covers get the nearest patch's.

    Args:
      values: hwT float32.
      height: of the image.
      width: the same.

    Returns:
      float32 [height, width, T].
    """
    left, top, right, bottom = self.box(height, width)
    rows = _between(len(values), height, top, bottom)
    columns = _between(values.shape[1], width, left, right)
    tall = np.tensordot(rows, values, 1)  # HwT
    # As products of matrices, [W, w] x [w, T] for each row.
    return np.matmul(columns[None], tall)

  def to_nearest(
    self, classes: np.ndarray, height: int, width: int
  ) -> np.ndarray:
    """Returns the class [height, width] of the patch that a pixel lies in.

    Args:
      classes: integers hw.
      height: of the image.
      width: the same.
    """
    left, top, right, bottom = self.box(height, width)
    tall, wide = classes.shape
    rows = (np.arange(height) + 0.5 - top) * (tall / (bottom - top))
    columns = (np.arange(width) + 0.5 - left) * (wide / (right - left))
    rows, columns = (
      np.floor(at).clip(0, count - 1).astype(int)
      for at, count in ((rows, tall), (columns, wide))
    )
    return classes[np.ix_(rows, columns)]

  def classes(self, mask: np.ndarray, count: int) -> np.ndarray:
    """Returns how many pixels of each class a patch covers, hwC float32.

    Args:
      mask: uint8 [H, W]; `masks.IGNORED` counts for nothing.
      count: C; a class from that on counts for nothing.
    """
    box = self.box(*mask.shape)
    rows, columns = self.of(*mask.shape)
    fine = masks.resize(mask, rows * self.patch, columns * self.patch, box)
    cells = fine.reshape(rows, self.patch, columns, self.patch)
    cells = cells.swapaxes(1, 2).reshape(rows * columns, -1)
    place = np.arange(len(cells))[:, None] * (masks.IGNORED + 1) + cells
    counts = np.bincount(
      place.ravel(), minlength=len(cells) * (masks.IGNORED + 1)
    )
    counts = counts.reshape(rows, columns, -1)[..., :count]
    return counts.astype(np.float32)


def middles(rows: int, columns: int) -> np.ndarray:
  """Returns where the middle of each patch lies, (down, right) in [0, 1].

  float64 [h w, 2], of what all patches cover.

  Args:
    rows: h.
    columns: w.
  """
  down, right = ((np.arange(n) + 0.5) / n for n in (rows, columns))
  return np.stack(np.meshgrid(down, right, indexing="ij"), -1).reshape(-1, 2)


def unit(vectors: np.ndarray) -> np.ndarray:
  """Returns vectors of length 1, along the last axis."""
  return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-8)


def _between(old: int, new: int, start: float, stop: float) -> np.ndarray:
  """Returns [new, old] float32: linear weights; the ends are repeated.

  Args:
    old: cells, which lie side by side from `start` to `stop`.
    new: pixels, whose middles are asked for.
    start: where the first cell begins, in new pixels.
    stop: where the last one ends.
  """
  at = (np.arange(new) + 0.5 - start) * (old / (stop - start)) - 0.5
  at = at.clip(0, old - 1)
  distance = np.abs(at[:, None] - np.arange(old))
  return np.maximum(0, 1 - distance).astype(np.float32)
