"""Learned positions of a square grid of patches, on a grid of another size.

Shape letters: L patches, D width; n patches along a side, g learned ones.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


def weights(n: int, base: int) -> np.ndarray:
  """Returns what each of n places takes of `base` learned ones; ng float32.

  Linear interpolation between the middles of patches, antialiased where there
  are fewer than were learned: what SigLIP 2 does for NaFlex, and transformers
  for it (`F.interpolate(mode="bilinear", antialias=True)`).

  Args:
    n: places along a side.
    base: g.
  """
  ratio = base / n
  support = max(ratio, 1.0)
  centre = (np.arange(n) + 0.5) * ratio - 0.5
  distance = np.abs(centre[:, None] - np.arange(base)) / support
  found = np.maximum(0, 1 - distance)
  return (found / found.sum(axis=1, keepdims=True)).astype(np.float32)


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
