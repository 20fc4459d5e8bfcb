"""The image tower on sequences of patches: equal to squares, blind to pads."""

import functools

import jax
import jax.numpy as jnp
import model_cases
import numpy as np
import pytest

from big_siglip.data import patches
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.models.backends import choose

CONFIG = model_cases.model_config(image={"size": "mu/4", "depth": 2})
SIDE = 4  # Of the table: 16 pixels, 4 a patch.


@pytest.fixture(scope="module")
def model():
  return SigLIP(CONFIG)


@pytest.fixture(scope="module")
def params(model):
  return model_cases.random_params(model)


@pytest.fixture(scope="module")
def see(model):
  see = functools.partial(model.apply, method="see")
  return jax.jit(lambda params, image: see({"params": params}, image, None))


def sequences(images, length):
  """Returns what the tower sees of images whose sides are whole patches."""
  return {
    "patches": np.stack([patches.cut(image, 4, length) for image in images]),
    "grid": np.int32([np.array(image.shape[:2]) // 4 for image in images]),
  }


def pictures(*grids):
  rng = np.random.default_rng(0)
  shapes = [(4 * rows, 4 * columns, 3) for rows, columns in grids]
  return [rng.integers(0, 256, shape, np.uint8) for shape in shapes]


def test_squares_are_seen_as_the_tower_of_pixels_sees_them(see, params):
  images = pictures((4, 4), (4, 4), (4, 4))
  fixed = see(params, np.stack(images))
  for length in (16, 21):
    flexible = see(params, sequences(images, length))
    np.testing.assert_allclose(flexible.image, fixed.image, atol=1e-5)
    np.testing.assert_allclose(
      flexible.image_tokens[:, :16], fixed.image_tokens, atol=1e-5
    )
    assert flexible.image_mask.sum(axis=1).tolist() == [16] * 3
  assert fixed.image_mask is None


def test_what_stands_in_the_padding_changes_nothing_at_all(see, params):
  seen = sequences(pictures((2, 5), (1, 7), (3, 3), (1, 1)), 20)
  plain = see(params, seen)
  real = np.asarray(plain.image_mask)
  assert real.sum(axis=1).tolist() == [10, 7, 9, 1]
  noise = np.random.default_rng(1).integers(0, 256, seen["patches"].shape)
  noisy = np.where(real[..., None], seen["patches"], noise).astype(np.uint8)
  changed = see(params, {**seen, "patches": noisy})
  np.testing.assert_array_equal(changed.image, plain.image)
  np.testing.assert_array_equal(
    changed.image_tokens[real], plain.image_tokens[real]
  )


def test_each_image_is_seen_as_it_is_alone_at_any_length(see, params):
  images = pictures((2, 5), (1, 7), (3, 3), (20, 1))
  together = see(params, sequences(images, 24)).image
  for image, expected in zip(images, together, strict=True):
    count = image.shape[0] * image.shape[1] // 16
    alone = see(params, sequences([image], count)).image[0]
    np.testing.assert_allclose(alone, expected, atol=2e-6)


def test_the_parameters_are_those_of_the_tower_of_pixels(model, params):
  example = sequences(pictures((3, 5)), 24)
  text = np.zeros((1, 6), np.int32)
  made = jax.jit(model.init)(jax.random.key(3), example, text)["params"]
  square = np.zeros((1, 16, 16, 3), np.uint8)
  fixed = jax.jit(model.init)(jax.random.key(3), square, text)["params"]
  jax.tree.map(np.testing.assert_array_equal, made, fixed)


@pytest.mark.parametrize("ratio", (1, 2, 5, 10, 20))
def test_embeddings_are_finite_at_any_shape(see, params, ratio):
  seen = []
  for size in ((64, 64 * ratio), (64 * ratio, 64), (1, ratio), (ratio, 1)):
    rows, columns = patches.grid_of(*size, 4, 24)
    assert rows * columns <= 24
    seen += pictures((rows, columns))
  found = see(params, sequences(seen, 24))
  assert np.isfinite(found.image).all()
  np.testing.assert_allclose(np.linalg.norm(found.image, axis=1), 1, atol=1e-5)
  assert np.isfinite(found.image_tokens).all()


def test_gradients_are_finite_and_padding_has_none(model, params):
  seen = sequences(pictures((2, 5), (1, 1)), 12)
  values = seen["patches"].astype(np.float32) / 127.5 - 1

  def loss(params, values):
    image = {"patches": values, "grid": seen["grid"]}
    return model.apply({"params": params}, image, None)[0][:, 0].sum()

  of_params, of_values = jax.jit(jax.grad(loss, (0, 1)))(params, values)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_params))
  assert np.abs(of_params["image"]["position_embedding"]).max() > 0
  assert not np.asarray(of_values)[0, 10:].any()
  assert not np.asarray(of_values)[1, 1:].any()
  assert np.asarray(of_values)[0, :10].any()


def test_backends_with_masks_agree(see, params):
  seen = sequences(pictures((2, 5), (1, 7), (3, 3)), 24)
  expected = see(params, seen).image
  for backend in ("xla", "heads_first"):
    config = CONFIG.copy_and_resolve_references()
    config.attention = backend
    found = SigLIP(config).apply({"params": params}, seen, None)[0]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_kernel_without_masks_is_refused_by_name():
  with pytest.raises(UserError, match=r"short: has no masks"):
    choose("short", 8, 128, 2, 64, jnp.float32, mask=True)
