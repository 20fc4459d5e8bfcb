"""Crops that are cut on the device, against Pillow."""

import math

import jax
import numpy as np
import pytest

from big_siglip.data import images
from big_siglip.objectives.cutting import Cut


@pytest.mark.parametrize("size", [6, 40])
def test_pixels_are_those_of_pillow(size):
  """Where they shrink and where they grow."""
  rng = np.random.default_rng(0)
  large = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
  keys = jax.random.split(jax.random.key(0), 3)
  cut = Cut(5, size, (0.05, 0.4), flip=True)
  found = np.asarray(jax.jit(cut)(large, keys))
  assert found.shape == (3, 5, size, size, 3)
  mirrored_ones = 0
  for row in range(3):
    for i, key in enumerate(jax.random.split(keys[row], 5)):
      box, mirrored = jax.device_get(cut.draw(key))
      mirrored_ones += mirrored
      pixels = images.resize(
        large[row], size, "bilinear", tuple(32 * float(x) for x in box)
      )
      expected = images.flip(pixels) if mirrored else pixels
      # Pillow rounds after each of two passes.
      np.testing.assert_allclose(found[row, i], expected, atol=1.1)
  assert 0 < mirrored_ones < 15


def test_boxes_have_the_area_and_shape_that_are_asked_for():
  cut = Cut(1, 8, (0.05, 0.4), flip=True)
  keys = jax.random.split(jax.random.key(1), 3000)
  boxes, mirrored = jax.device_get(jax.jit(jax.vmap(cut.draw))(keys))
  left, top, right, bottom = boxes.T
  assert boxes.min() >= 0 and boxes.max() <= 1
  area = (right - left) * (bottom - top)
  assert 0.05 - 1e-6 <= area.min() < 0.052 and 0.398 < area.max() < 0.4 + 1e-6
  assert abs(area.mean() - 0.225) < 0.006  # Uniform.
  aspect = np.log((right - left) / (bottom - top)) / math.log(4 / 3)
  assert -1 - 1e-5 <= aspect.min() < -0.99 and 0.99 < aspect.max() <= 1 + 1e-5
  assert 0.47 < mirrored.mean() < 0.53
  still = Cut(1, 8, (0.05, 0.4), flip=False)
  assert not np.any(jax.vmap(still.draw)(keys[:50])[1])


def test_a_crop_depends_on_its_own_key_alone():
  large = np.random.default_rng(2).integers(0, 256, (6, 16, 16, 3), np.uint8)
  keys = jax.random.split(jax.random.key(2), 6)
  cut = Cut(2, 8, (0.05, 0.4), flip=True)
  whole, part = cut(large, keys), cut(large[4:], keys[4:])
  np.testing.assert_allclose(whole[4:], part, atol=1e-4)
