"""Learned positions of a square grid of patches, on grids of other sizes.

Linear interpolation between the middles of patches, antialiased where there are
fewer than were learned, as SigLIP 2's NaFlex models have it (arXiv:2502.14786,
section 2.4.2; big_vision's models/proj/image_text/naflex_vit.py, transformers'
models/siglip2). Along one side of n patches, of which g were learned, with
r = g / n, patch i takes of learned patch j

  max(0, 1 - |j - ((i + 1/2) r - 1/2)| / max(r, 1)),

divided by the sum over j.

Shape letters: B batch, L patches, N places of a sequence of patches, D width; n
patches along a side, g learned ones.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def weights(n: int, base: int) -> np.ndarray:
  """Returns what each of n places takes of `base` learned ones; ng float32.

  Args:
    n: places along a side.
    base: g.
  """
  return _weights(np.arange(n), [n], base, np).astype(np.float32)


def weights_at(index: jax.Array, n: jax.Array, base: int) -> jax.Array:
  """Returns `weights` on the device, for places of grids of several sizes.

  Args:
    index: [...] int32, of a place along a side, from 0.
    n: int32 of as many dimensions: how many there are along the side.
    base: g.

  Returns:
    [..., g] float32.
  """
  return _weights(index, n, base, jnp)


def places(grid: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
  """Returns row and column of each place of a sequence, 2 x [B, N] int32.

  Grids lie row by row at the start of their sequence. What stands behind them
  is at (0, 0).

  Args:
    grid: [B, 2] int32, rows and columns; less than 1 counts as 1.
    length: N.
  """
  rows, columns = (jnp.maximum(grid[:, i : i + 1], 1) for i in (0, 1))
  place = jnp.arange(length, dtype=jnp.int32)[None]
  place = jnp.where(place < rows * columns, place, 0)
  return place // columns, place % columns


def real(grid: jax.Array, length: int) -> jax.Array:
  """Returns which places of a sequence hold a patch, [B, N] bool.

  Args:
    grid: [B, 2] int32, rows and columns.
    length: N.
  """
  count = jnp.prod(grid, axis=1, keepdims=True)
  return jnp.arange(length, dtype=jnp.int32)[None] < count


@dataclasses.dataclass(frozen=True)
class Grid:
  """Patches of an image, and of those whose positions are learned.

  Attributes:
    rows: of the image.
    columns: of the image.
    base: g; g rows and columns are learned.
  """

  rows: int
  columns: int
  base: int

  def count(self) -> int:
    """Returns L."""
    return self.rows * self.columns

  def learned(self) -> int:
    """Returns how many positions are learned."""
    return self.base**2

  def is_learned(self) -> bool:
    """Returns whether the image has just the patches that are learned."""
    return self.rows == self.columns == self.base

  def resample(self, table: jax.Array) -> jax.Array:
    """Returns the positions of the image's patches, row by row; ggD -> LD.

    Differentiable by the table.

    Args:
      table: the learned ones, [g g, D], row by row.
    """
    square = table.reshape(self.base, self.base, -1)
    rows, columns = (
      jnp.asarray(weights(n, self.base)) for n in (self.rows, self.columns)
    )
    found = jnp.einsum("yj,jkd->ykd", rows, square, precision="highest")
    found = jnp.einsum("xk,ykd->yxd", columns, found, precision="highest")
    return found.reshape(self.count(), -1)


@dataclasses.dataclass(frozen=True)
class Grids:
  """`Grid` of sequences of patches, each of another shape (NaFlex).

  Attributes:
    grid: [B, 2] int32, rows and columns of each image.
    length: N.
    base: g; g rows and columns are learned.
  """

  grid: jax.Array
  length: int
  base: int

  def count(self) -> int:
    """Returns N."""
    return self.length

  def learned(self) -> int:
    """Returns how many positions are learned."""
    return self.base**2

  def is_learned(self) -> bool:
    """Returns False: that is not known before it runs."""
    return False

  def resample(self, table: jax.Array) -> jax.Array:
    """Returns the positions of each image's patches; ggD -> BND float32.

    What stands behind a grid gets that of the first patch. Differentiable by
    the table.

    Args:
      table: the learned ones, [g g, D], row by row.
    """
    row, column = places(self.grid, self.length)
    n = jnp.maximum(self.grid, 1)
    down = weights_at(row, n[:, :1], self.base)
    across = weights_at(column, n[:, 1:], self.base)
    both = down[..., :, None] * across[..., None, :]
    return jnp.matmul(
      both.reshape(*row.shape, -1),
      table.astype(jnp.float32),
      precision="highest",
    )


def _weights(index: Any, n: Any, base: int, of: Any) -> Any:
  """Computes the formula above with numpy or JAX.

  Times 2 n max(g / n, 1), so that all but the last division is of integers.
  """
  index, n = (of.asarray(x)[..., None] for x in (index, n))
  rows = of.arange(base).reshape((1,) * (index.ndim - 1) + (base,))
  distance = of.abs(2 * n * rows - ((2 * index + 1) * base - n))
  found = of.maximum(0, 2 * of.maximum(base, n) - distance)
  return found / found.sum(axis=-1, keepdims=True)
