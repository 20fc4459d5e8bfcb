"""The image tower on images of another size, and with hidden patches."""

import jax
import jax.numpy as jnp
import model_cases
import numpy as np
from peers import torch
import pytest

from big_siglip.models import SigLIP
from big_siglip.models.positions import Grid, weights
from big_siglip.models.towers import Hidden


@pytest.mark.torch
@pytest.mark.parametrize("grid", [(6, 6), (3, 5), (16, 16), (21, 12), (1, 64)])
def test_positions_are_resampled_as_torch_does(grid):
  table = np.random.default_rng(0).normal(size=(16, 16, 8)).astype(np.float32)
  found = Grid(*grid, 16).resample(table.reshape(256, 8))
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(table).permute(2, 0, 1)[None],
    size=grid,
    mode="bilinear",
    align_corners=False,
    antialias=True,
  )
  expected = expected[0].permute(1, 2, 0).reshape(-1, 8)
  np.testing.assert_allclose(found, expected, atol=3e-6)


def test_each_place_is_a_mean_of_learned_ones():
  for n in (1, 3, 6, 16, 40):
    np.testing.assert_allclose(weights(n, 16).sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_array_equal(weights(16, 16), np.eye(16))
  # Halving: a triangle over the four nearest, 1 3 3 1 in eighths.
  np.testing.assert_allclose(
    weights(8, 16)[3, 5:9], np.array([1, 3, 3, 1]) / 8, rtol=1e-6
  )


@pytest.fixture(scope="module", params=["map", "cls"])
def model(request):
  # 4 x 4 patches.
  image = {"pooling": request.param, "patch_size": 4, "head": True}
  made = SigLIP(model_cases.model_config(image=image))
  return made, model_cases.random_params(made)


def test_an_image_of_another_size_sees_the_resampled_positions(model):
  made, params = model
  size = made.config.image.width or 32
  rng = np.random.default_rng(1)
  image = rng.integers(0, 256, (2, 8, 12, 3), np.uint8)
  seen = made.look(params, {"image": image})
  assert seen.image_tokens.shape == (2, 6, size)
  # A model of just that size, whose positions were resampled before: a square.
  square = image[:, :, :8]
  seen = made.look(params, {"image": square})
  table = params["image"]["position_embedding"]
  before, patches = table[:-16], table[-16:]
  small = model_cases.model_config(
    image={**made.config.image, "image_size": 8}, text=made.config.text
  )
  there = {
    **params,
    "image": {
      **params["image"],
      "position_embedding": jnp.concatenate(
        [before, Grid(2, 2, 4).resample(patches)]
      ),
    },
  }
  expected = SigLIP(small).look(there, {"image": square})
  for name in ("image", "image_tokens", "image_pooled"):
    np.testing.assert_array_equal(getattr(seen, name), getattr(expected, name))


def test_the_learned_positions_get_the_gradient_of_a_resampled_image(model):
  made, params = model
  image = np.full((1, 8, 8, 3), 90, np.uint8)

  weight = np.random.default_rng(3).normal(size=(1, 4, 32))

  def total(table):
    tower = {**params["image"], "position_embedding": table}
    seen = made.look({**params, "image": tower}, {"image": image})
    return (seen.image_tokens * weight).sum()

  table = params["image"]["position_embedding"]
  gradient = jax.grad(total)(table)
  step = 1e-2 * np.random.default_rng(4).normal(size=table.shape)
  step[:-16] = 0
  change = total(table + step) - total(table - step)
  expected = 2 * (gradient * step).sum()
  np.testing.assert_allclose(change, expected, rtol=2e-2)
  assert abs(expected) > 1e-2


def test_what_is_pooled_comes_before_the_head(model):
  made, params = model
  image, _ = model_cases.example_inputs(made.config)
  seen = made.look(params, {"image": image})
  projected = seen.image_pooled @ params["image"]["head"]["kernel"]
  norm = np.linalg.norm(projected, axis=1, keepdims=True)
  np.testing.assert_allclose(seen.image, projected / norm, atol=1e-5)


def test_hidden_patches_do_not_leak(model):
  """Nothing of what they show is seen; their place is."""
  made, params = model
  rng = np.random.default_rng(2)
  image = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
  patches = rng.random((3, 16)) < 0.5
  token = rng.normal(size=32).astype(np.float32)
  noise = rng.integers(0, 256, image.shape, np.uint8)
  where = patches.reshape(3, 4, 4).repeat(4, axis=1).repeat(4, axis=2)
  other = np.where(where[..., None], noise, image)

  def see(pixels, token=token):
    return made.look(params, {"image": pixels}, Hidden(patches, token))

  one, two = see(image), see(other)
  for name in ("image", "image_tokens", "image_pooled"):
    np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
  assert not np.array_equal(one.image_tokens, see(image, 2 * token)[2])
  # An image all hidden shows positions alone: places differ, images do not.
  all_hidden = Hidden(np.ones((3, 16), bool), token)
  blind = made.look(params, {"image": image}, all_hidden).image_tokens
  np.testing.assert_allclose(blind[0], blind[1], atol=1e-6)
  assert np.abs(blind[0, 0] - blind[0, 1]).max() > 1e-3
  # As the tower would see it if each hidden patch embedded to the token.
  kernel, bias = (
    params["image"]["patch_embedding"][n] for n in ("kernel", "bias")
  )
  flat = np.asarray(kernel).reshape(-1, 32)  # [4 4 3, 32]
  pixels = np.linalg.lstsq(flat.T, token - bias, rcond=None)[0]
  shown = np.tile(pixels.reshape(4, 4, 3), (3, 4, 4, 1)).astype(np.float32)
  mixed = np.where(where[..., None], shown, image / 127.5 - 1)
  expected = made.look(params, {"image": mixed.astype(np.float32)})
  np.testing.assert_allclose(
    one.image_tokens, expected.image_tokens, atol=2e-4, rtol=2e-4
  )
