"""Learned positions of a grid at any other: bilinear, where it shrinks smooth.

Half a pixel off the edges, with antialiasing, as SigLIP 2's NaFlex models have
it (arXiv:2502.14786, section 2.4.2; big_vision's models/proj/image_text/
naflex_vit.py, transformers' models/siglip2). Along one axis of n outputs and b
rows of the table, with r = b / n, output i weighs row j by

  max(0, 1 - |j - ((i + 1/2) r - 1/2)| / max(r, 1)),

divided by the sum over j.

Shape letters: B batch, N places of a sequence, D width, b rows of a table.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def weights(n: int, base: int) -> np.ndarray:
  """Returns what each of n outputs takes of each row; [n, base] float32.

  Args:
    n: of outputs along one axis; known before anything is compiled.
    base: rows of the table along it.
  """
  return _weights(np.arange(n), [n], base, np).astype(np.float32)


def weights_at(index: jax.Array, n: jax.Array, base: int) -> jax.Array:
  """Returns `weights` on the device, for outputs of grids of several sizes.

  Args:
    index: [...] int32, of an output, from 0.
    n: int32 of as many dimensions: how many outputs there are in its grid.
    base: rows of the table along the axis.

  Returns:
    [..., base] float32.
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


def resample(table: jax.Array, rows: int, columns: int) -> jax.Array:
  """Returns a table at one grid, [rows * columns, D] float32, row by row.

  Args:
    table: [b, b, D], not necessarily square.
    rows: of the grid.
    columns: of the grid.
  """
  down, across = (
    weights(n, base)
    for n, base in zip((rows, columns), table.shape, strict=False)
  )
  both = np.einsum("yj,xk->yxjk", down, across)
  return _mix(jnp.asarray(both.reshape(rows * columns, -1)), table)


def resample_each(table: jax.Array, grid: jax.Array, length: int) -> jax.Array:
  """Returns a table at the grid of each image, [B, N, D] float32.

  Args:
    table: [b, b, D], not necessarily square.
    grid: [B, 2] int32, rows and columns of each image's patches.
    length: N; what stands behind a grid gets the vector of its first patch.
  """
  row, column = places(grid, length)
  down = weights_at(row, jnp.maximum(grid[:, :1], 1), table.shape[0])
  across = weights_at(column, jnp.maximum(grid[:, 1:], 1), table.shape[1])
  both = down[..., :, None] * across[..., None, :]
  return _mix(both.reshape(*row.shape, -1), table)


def _weights(index: Any, n: Any, base: int, of: Any) -> Any:
  """Computes the formula above with numpy or JAX.

  Times 2 n max(b / n, 1), so that all but the last division is of integers.
  """
  index, n = (of.asarray(x)[..., None] for x in (index, n))
  rows = of.arange(base).reshape((1,) * (index.ndim - 1) + (base,))
  distance = of.abs(2 * n * rows - ((2 * index + 1) * base - n))
  found = of.maximum(0, 2 * of.maximum(base, n) - distance)
  return found / found.sum(axis=-1, keepdims=True)


def _mix(both: jax.Array, table: jax.Array) -> jax.Array:
  """Returns [..., b * b] weights times a table, [..., D], in float32."""
  flat = table.reshape(-1, table.shape[-1]).astype(jnp.float32)
  return jnp.matmul(both, flat, precision=jax.lax.Precision.HIGHEST)
