"""Learned positions at other grids, against JAX's and torch's resizing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from big_siglip.models import positions

GRIDS = ((16, 16), (1, 7), (3, 5), (12, 21), (36, 28), (1, 64), (2, 128))
TALL = ((7, 1), (64, 1), (64, 4))


@functools.partial(jax.jit, static_argnums=2)
def resample_each(table, grid, length):
  return positions.Grids(grid, length, 16).resample(table.reshape(256, 8))


@pytest.fixture(scope="module")
def table():
  return np.random.default_rng(0).normal(size=(16, 16, 8)).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS + TALL)
def test_a_grid_is_what_jax_resizes_it_to(table, grid):
  scale = jnp.asarray([n / 16 for n in grid], jnp.float32)
  expected = jax.image.scale_and_translate(
    table,
    (*grid, 8),
    (0, 1),
    scale,
    jnp.zeros(2),
    "bilinear",
    antialias=True,
  ).reshape(-1, 8)
  ours = positions.Grid(*grid, 16).resample(table.reshape(256, 8))
  np.testing.assert_allclose(ours, expected, atol=5e-6)


# torch 2.13 repeats the first row where the result has a width of 1.
@pytest.mark.parametrize("grid", GRIDS + TALL[2:])
def test_a_grid_is_what_torch_resizes_it_to(table, grid):
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(table).permute(2, 0, 1)[None],
    size=grid,
    mode="bilinear",
    align_corners=False,
    antialias=True,
  )[0].permute(1, 2, 0)
  ours = positions.Grid(*grid, 16).resample(table.reshape(256, 8))
  np.testing.assert_allclose(ours, expected.reshape(-1, 8), atol=5e-6)


def test_the_grid_of_the_table_is_the_table_to_the_bit(table):
  ours = positions.Grid(16, 16, 16).resample(table.reshape(256, 8))
  np.testing.assert_array_equal(ours, table.reshape(256, 8))
  grid = jnp.asarray([[16, 16], [3, 5]])
  each = resample_each(table, grid, 256)
  np.testing.assert_array_equal(each[0], table.reshape(256, 8))


def test_each_image_of_a_batch_gets_the_positions_of_its_own_grid(table):
  grids = [g for g in GRIDS + TALL if g[0] * g[1] <= 256]
  ours = resample_each(table, jnp.asarray(grids, jnp.int32), 256)
  for grid, found in zip(grids, ours, strict=True):
    real = grid[0] * grid[1]
    expected = positions.Grid(*grid, 16).resample(table.reshape(256, 8))
    np.testing.assert_allclose(found[:real], expected, atol=2e-6)
    np.testing.assert_allclose(found[real:], found[:1].repeat(256 - real, 0))


def test_weights_are_shares_of_the_rows_near_an_output():
  for n in (1, 2, 15, 16, 17, 64):
    found = positions.weights(n, 16)
    assert found.dtype == np.float32 and found.shape == (n, 16)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, found[::-1, ::-1], atol=1e-6)
  # Two rows of weight 1/2 become one; the far ones count less.
  np.testing.assert_allclose(
    positions.weights(2, 4)[0], np.array([3, 3, 1, 0]) / 7, atol=1e-6
  )


def test_places_go_row_by_row_and_padding_stands_at_the_first():
  row, column = positions.places(jnp.asarray([[2, 3], [0, 0]]), 8)
  assert row.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0] * 8]
  assert column.tolist() == [[0, 1, 2, 0, 1, 2, 0, 0], [0] * 8]


def test_gradients_reach_the_table_and_nothing_is_lost(table):
  grid = jnp.asarray([[3, 5]])

  def total(table):
    found = resample_each(table, grid, 20)
    return jnp.einsum("i,id->", jnp.arange(15.0), found[0, :15])

  gradient = jax.grad(total)(jnp.asarray(table))
  # Linear, so the gradient at every channel is the product with the weights.
  both = np.einsum(
    "yj,xk->yxjk", positions.weights(3, 16), positions.weights(5, 16)
  ).reshape(15, 16, 16)
  expected = np.einsum("i,ijk->jk", np.arange(15.0), both)
  np.testing.assert_allclose(gradient[..., 0], expected, atol=1e-4)
