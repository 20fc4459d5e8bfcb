"""Resampling, against the code that made the published models."""

import jax
import numpy as np
import pytest

from big_siglip.errors import UserError
from big_siglip.models.resampling import (
  resample_patches,
  resample_positions,
  stretch_positions,
)


def _grid(side, width=5):
  rng = np.random.default_rng(side)
  return rng.normal(size=(side * side, width)).astype(np.float32)


@pytest.mark.parametrize(("old", "new"), [(14, 24), (16, 14), (7, 7), (4, 9)])
def test_big_vision_positions_equal_scipys_zoom(old, new):
  from scipy.ndimage import zoom

  positions = _grid(old)
  scale = (new / old, new / old, 1)
  expected = zoom(positions.reshape(old, old, -1), scale, order=1)
  actual = resample_positions(positions, new, "big_vision")
  np.testing.assert_allclose(
    actual.reshape(expected.shape), expected, atol=1e-5
  )


@pytest.mark.torch
@pytest.mark.parametrize(("old", "new"), [(14, 24), (16, 14), (7, 7), (4, 9)])
def test_huggingface_positions_equal_torchs_bicubic(old, new):
  torch = pytest.importorskip("torch")
  positions = _grid(old)
  grid = torch.tensor(positions.reshape(1, old, old, -1)).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(
    grid, (new, new), mode="bicubic", align_corners=False
  )
  expected = expected.permute(0, 2, 3, 1).reshape(new * new, -1).numpy()
  actual = resample_positions(positions, new, "huggingface")
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_longer_text_keeps_its_ends():
  positions = _grid(4)
  longer = stretch_positions(positions, 31)
  np.testing.assert_array_equal(longer[[0, -1]], positions[[0, -1]])
  np.testing.assert_allclose(longer[::2], positions, atol=1e-6)
  np.testing.assert_allclose(
    longer[1], (positions[0] + positions[1]) / 2, atol=1e-6
  )


@pytest.mark.parametrize(("old", "new"), [(16, 14), (14, 16), (16, 32)])
def test_patch_kernels_equal_flexivits(old, new):
  kernel = np.random.default_rng(0).normal(size=(old, old, 3, 4))
  # The paper's construction: the resize as a matrix, column by column.
  basis = np.eye(old * old).reshape(-1, old, old)
  matrix = np.stack(
    [
      np.asarray(jax.image.resize(x, (new, new), "bilinear")).reshape(-1)
      for x in basis
    ],
    axis=1,
  )
  expected = np.einsum(
    "ab,bcd->acd", np.linalg.pinv(matrix.T), kernel.reshape(-1, 3, 4)
  )
  actual = resample_patches(kernel, new).reshape(expected.shape)
  np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_larger_patches_give_the_same_products_with_enlarged_images():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(14, 14, 3, 4)).astype(np.float32)
  image = rng.normal(size=(14, 14, 3)).astype(np.float32)
  large = jax.image.resize(image, (16, 16, 3), "bilinear")
  new = resample_patches(kernel, 16)
  np.testing.assert_allclose(
    np.einsum("ijc,ijcd->d", large, new),
    np.einsum("ijc,ijcd->d", image, kernel),
    atol=1e-3,
  )


def test_positions_that_are_no_grid_are_refused():
  with pytest.raises(UserError, match="5 rows is no square grid"):
    resample_positions(np.zeros((5, 2)), 3, "big_vision")
