"""Images as sequences of patches that keep their shape: SigLIP 2's NaFlex.

An image is resized so that its sides are whole patches, and no more of them
than a sequence holds; its shape changes by less than a patch a side
(arXiv:2502.14786, section 2.4.2; big_vision's pp/proj/image_text/
ops_naflex.py).

Shape letters: N places of a sequence, p pixels along a patch's side.
"""

import math

import numpy as np

from big_siglip.errors import BadExample

_EPSILON = 1e-5  # Of the search for a scale, and its bounds: all as published.
_LEAST, _MOST = _EPSILON / 10, 100.0


def grid_of(
  height: int, width: int, patch: int, length: int
) -> tuple[int, int]:
  """Returns the rows and columns of patches that show an image.

  They are the most that fit a sequence at one scale of both sides, each rounded
  up to whole patches, where the scale is at most 100. A binary search as the
  published one, step by step, so that all grids are equal.

  Args:
    height: of the image, in pixels.
    width: the same.
    patch: p.
    length: N, at least 1.

  Raises:
    BadExample: one side is so long that a patch for each piece of it is more
      than the sequence holds, whatever the scale.
  """
  low, high = _LEAST, _MOST
  while high - low >= _EPSILON:
    middle = (low + high) / 2
    if math.prod(_grid(height, width, patch, middle)) <= length:
      low = middle
    else:
      high = middle
  found = _grid(height, width, patch, low)
  if math.prod(found) > length:
    raise BadExample(
      f"{width}x{height} does not fit {length} patches of {patch} pixels",
      "image",
    )
  return found


def cut(
  image: np.ndarray, patch: int, length: int, out: np.ndarray | None = None
) -> np.ndarray:
  """Returns an image's patches row by row, [N, p * p * 3], then zeros.

  Within a patch: by row, by column, by color.

  Args:
    image: uint8 [rows * p, columns * p, 3].
    patch: p.
    length: N.
    out: uint8 [N, p * p * 3] to write to; None: a new one.
  """
  height, width, colors = image.shape
  rows, columns = height // patch, width // patch
  if out is None:
    out = np.empty((length, patch * patch * colors), np.uint8)
  pieces = image.reshape(rows, patch, columns, patch, colors)
  count = rows * columns
  shape = rows, columns, patch, patch, colors
  out[:count].reshape(shape)[:] = pieces.swapaxes(1, 2)
  out[count:] = 0
  return out


def join(patches: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
  """Undoes `cut`: returns uint8 [rows * p, columns * p, 3]."""
  rows, columns = grid
  pieces = patches[: rows * columns].reshape(rows, columns, patch, patch, -1)
  return pieces.swapaxes(1, 2).reshape(rows * patch, columns * patch, -1)


def _grid(height: int, width: int, patch: int, scale: float) -> tuple[int, int]:
  rows, columns = (
    max(1, math.ceil(side * scale / patch)) for side in (height, width)
  )
  return rows, columns
