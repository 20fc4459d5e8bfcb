"""Colours and blur on the device, against Pillow, colorsys and SciPy."""

import colorsys

import jax
import numpy as np
from PIL import Image, ImageEnhance
import pytest
import scipy.ndimage

from big_siglip.objectives import augmentation
from big_siglip.objectives.augmentation import Augmentation

SIZE = 12


def _image(seed=0):
  """uint8 [12, 12, 3] with greys and pure colours among them."""
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
  image[0] = image[0, :, :1]
  image[1] = np.array([255, 0, 0])
  image[2] = np.array([0, 0, 0])
  return image


def _first(image):
  return np.moveaxis(image, -1, 0).astype(np.float32) / 255


@pytest.mark.parametrize(
  "change,enhance",
  [
    (augmentation._brightness, ImageEnhance.Brightness),
    (augmentation._contrast, ImageEnhance.Contrast),
    (augmentation._saturation, ImageEnhance.Color),
  ],
)
@pytest.mark.parametrize("by", [-0.4, 0.3])
def test_colours_change_as_pillow_changes_them(change, enhance, by):
  image = _image()
  expected = np.asarray(enhance(Image.fromarray(image)).enhance(1 + by))
  found = 255 * np.moveaxis(change(_first(image), by), 0, -1)
  # Pillow's grey is rounded to whole numbers.
  np.testing.assert_allclose(found, expected, atol=1.6)


@pytest.mark.parametrize("by", [-0.1, 0.07, 0.5])
def test_hues_turn_as_colorsys_turns_them(by):
  image = _image()

  def turn(pixel):
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    return colorsys.hsv_to_rgb((hue + by) % 1, saturation, value)

  expected = np.apply_along_axis(turn, -1, image)
  found = np.moveaxis(augmentation._hue(_first(image), by), 0, -1)
  np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_is_scipys(sigma):
  image = _first(_image())
  expected = scipy.ndimage.gaussian_filter(
    image, (0, sigma, sigma), mode="mirror", radius=(0, 4, 4)
  )
  found = augmentation._blur(image, augmentation._taps(np.float32(sigma)))
  np.testing.assert_allclose(found, expected, atol=1e-6)


def _views(count=300):
  return np.broadcast_to(_image(), (count, 2, SIZE, SIZE, 3)), jax.random.split(
    jax.random.key(0), count
  )


@pytest.fixture(scope="module")
def changed():
  """{what is on: views by jit}; each alone, all, and none."""
  views, keys = _views()
  off = dict(jitter=0.0, grey=0.0, blur=0.0)
  kinds = {name: {**off, name: 0.5} for name in off}
  kinds |= {"none": off, "all": {}}
  return {
    name: np.asarray(jax.jit(Augmentation(**kind))(views, keys))
    for name, kind in kinds.items()
  }


def test_each_is_as_frequent_as_it_is_asked_to_be(changed):
  image = _image().astype(np.float32)
  np.testing.assert_array_equal(
    changed["none"], np.broadcast_to(image, changed["none"].shape)
  )
  for name in ("jitter", "grey", "blur"):
    moved = np.abs(changed[name] - image).max(axis=(2, 3, 4)) > 0.01
    assert 0.44 < moved.mean() < 0.56, name  # Of 600: three deviations.
    assert 0.15 < (moved[:, 0] & ~moved[:, 1]).mean() < 0.35, "independent"
  grey = changed["grey"]
  spread = np.ptp(grey, axis=-1).max(axis=(2, 3))
  assert ((spread < 1e-3) | (spread > 100)).all()
  for views in changed.values():
    assert views.min() >= 0 and views.max() <= 255.001  # Rounding.


def test_jitter_keeps_within_its_strength():
  views, keys = _views()
  brightness = Augmentation(1.0, (0.4, 0.0, 0.0, 0.0), grey=0, blur=0)
  dark = views // 4  # Nothing is cut off.
  factors = jax.jit(brightness)(dark, keys)[..., 5, 5, 0] / dark[..., 5, 5, 0]
  factors = np.asarray(factors)
  assert 0.6 <= factors.min() < 0.63 and 1.37 < factors.max() <= 1.4001
  assert abs(factors.mean() - 1) < 0.04


def test_the_order_of_changes_is_drawn():
  """Brightness, then contrast is not contrast, then brightness."""
  image = _first(_image())
  jitter = jax.jit(
    lambda key: augmentation._jitter(image, key, (0.4, 0.4, 0.2, 0.1))
  )
  key = jax.random.key(3)
  order, draw = jax.random.split(key)
  order = np.asarray(jax.random.permutation(order, 4))
  draws = np.asarray(jax.random.uniform(draw, (4,), minval=-1.0, maxval=1.0))
  by = draws * np.array([0.4, 0.4, 0.2, 0.1], np.float32)
  changes = (
    augmentation._brightness,
    augmentation._contrast,
    augmentation._saturation,
    augmentation._hue,
  )
  one = two = image
  for place in order:
    one = changes[place](one, by[place])
  for place in order[::-1]:
    two = changes[place](two, by[place])
  np.testing.assert_allclose(jitter(key), one, atol=1e-6)
  assert np.abs(one - two).max() > 1e-3


def test_a_view_depends_on_its_own_key_alone(changed):
  views, keys = _views()
  part = jax.jit(Augmentation())(views[7:9], keys[7:9])
  np.testing.assert_allclose(part, changed["all"][7:9], atol=1e-4)
