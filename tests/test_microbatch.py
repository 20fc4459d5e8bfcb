"""A batch in slices trains as the whole batch does, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from big_siglip import build, losses, sharding
from big_siglip.config import device_problems
from big_siglip.microbatch import value_and_grad
from big_siglip.models import SigLIP
from big_siglip.objectives.contrastive import make_loss
from big_siglip.sharding import Slices

# Widths that every mesh axis divides.
DIVISIBLE = {
  f"model__{tower}__{field}": value
  for tower in ("image", "text")
  for field, value in (("width", 64), ("num_heads", 8), ("mlp_dim", 64))
}


def _batch(size):
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8),
    "text": rng.integers(0, 259, (size, 16), np.int32),
  }


def _gradients(config, mesh, size):
  """Returns loss, statistics and gradients as `train_step` takes them."""
  model = SigLIP(config.model, sharding.batch_sharding(mesh))
  params = build.program(config, mesh).init_params()
  slices = None
  if config.microbatch:
    count = size // config.microbatch
    slices = Slices(count, mesh, sharding.BATCH_AXES)

  loss_fn = make_loss(config.loss, mesh)

  def forward(params, part):
    seen = model.look(params, part)
    return (seen.image, seen.text), (jnp.zeros(()), {})

  def pairs(params, embeddings, batch):
    del batch
    return loss_fn(*embeddings, params["logit_scale"], params["logit_bias"])

  step = jax.jit(
    lambda params, batch: value_and_grad(forward, pairs, params, batch, slices)
  )
  return step(params, sharding.to_global(mesh, _batch(size)))


@pytest.mark.parametrize("loss", ["ring_sigmoid", "softmax"])
@pytest.mark.parametrize(
  "shape",
  [
    (2, 2, 2),
    pytest.param((8, 1, 1), marks=pytest.mark.slow),
    pytest.param((1, 1, 8), marks=pytest.mark.slow),
  ],
)
def test_slices_change_no_gradient(shape, loss):
  size = 32
  config = runs.config(**DIVISIBLE, loss__name=loss, batch_size=size)
  config.mesh.update(dict(zip(sharding.AXES, shape, strict=True)))
  mesh = build.mesh(config)
  whole = _gradients(config, mesh, size)
  config.microbatch = 8
  (value, (statistics, _)), gradients = _gradients(config, mesh, size)
  (expected, (seen, _)), expected_gradients = whole
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  # In the order of the batch, not of the slices.
  np.testing.assert_allclose(
    statistics.hardest_negative, seen.hardest_negative, rtol=1e-5
  )
  gradients = runs.flatten(gradients)
  for path, wanted in runs.flatten(expected_gradients).items():
    if path.endswith("attention/key/bias"):
      continue  # Softmax does not see it: its gradient is rounding alone.
    # Small elements among large ones carry the rounding of the large ones.
    tolerance = 1e-5 * np.abs(wanted).max()
    np.testing.assert_allclose(
      gradients[path], wanted, rtol=0, atol=tolerance, err_msg=path
    )


def test_scale_and_bias_are_counted_once():
  # Others accumulate them once for each slice.
  def forward(params, part):
    return tuple(x @ params["w"] for x in part), (jnp.zeros(()), {})

  def pairs(params, embeddings, batch):
    del batch
    loss = losses.sigmoid_loss(*embeddings, params["scale"], params["bias"])
    return loss, {}

  keys = jax.random.split(jax.random.key(0), 3)
  image, text = (jax.random.normal(key, (16, 4)) for key in keys[:2])
  params = {
    "w": jax.random.normal(keys[2], (4, 4)),
    "scale": jnp.float32(0.5),
    "bias": jnp.float32(-1.0),
  }
  mesh = sharding.make_mesh(devices=jax.devices()[:1])

  def gradients_in(slices):
    function = functools.partial(value_and_grad, forward, pairs, slices=slices)
    return jax.jit(function)(params, (image, text))[1]

  expected = gradients_in(None)
  for count in (2, 4, 16):
    gradients = gradients_in(Slices(count, mesh, ("data",)))
    for name, wanted in expected.items():
      np.testing.assert_allclose(
        gradients[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name
      )


def test_memory_does_not_grow_with_the_batch_but_for_the_embeddings():
  def temporary_bytes(size):
    config = runs.config(
      batch_size=size, microbatch=64, loss__chunk_size=64, mesh__data=1
    )
    mesh = build.mesh(config, jax.devices()[:1])
    program = build.program(config, mesh)
    batch = build.abstract_batch(config, mesh)
    compiled = program.step.lower(program.abstract_state, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes, batch

  small, _ = temporary_bytes(256)
  large, batch = temporary_bytes(2048)
  grown = 2048 - 256
  width = 32
  embeddings = 4 * grown * width
  pixels = grown * np.prod(batch["image"].shape[1:])
  tiles = 64 * grown * 4  # A tile of logits is as wide as the batch.
  # Embeddings and gradients, in both orders; the bytes of images cut and in
  # their order.
  assert large - small < 16 * embeddings + 3 * pixels + 8 * tiles
  activations_of_one = 4 * 17 * (64 + 32 + 3 * 32)
  assert large - small < grown * activations_of_one / 2


@pytest.mark.parametrize("microbatch", [3, 12, 64])
def test_a_size_that_does_not_divide_is_named(microbatch):
  config = runs.config(batch_size=32)
  config.microbatch = microbatch
  (problem,) = device_problems(config, 8)
  assert f"config.microbatch={microbatch}: must divide" in problem
