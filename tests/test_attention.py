"""Every implementation of attention gives the same values and gradients."""

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from big_siglip import sharding
from big_siglip.models.attention import attention
from big_siglip.schema import fields


def _inputs(length=24, keys=24, heads=2, size=8, batch=2):
  rngs = jax.random.split(jax.random.key(0), 4)
  shapes = [(batch, length, heads, size)] + [(batch, keys, heads, size)] * 2
  shapes.append(shapes[0])
  pairs = zip(rngs, shapes, strict=True)
  return [jax.random.normal(rng, shape) for rng, shape in pairs]


def _reference(query, key, value):
  """Written out in float64 numpy."""
  query, key, value = map(np.float64, (query, key, value))
  logits = np.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bhqk,bkhd->bqhd", weights, value)


@pytest.mark.parametrize("backend", ["auto", "xla", "heads_first", "jax"])
@pytest.mark.parametrize("length", [1, 24])
def test_values_equal_numpy(backend, length):
  *inputs, _ = _inputs(length=length)
  actual = attention(*inputs, backend=backend)
  np.testing.assert_allclose(actual, _reference(*inputs), atol=1e-5)


def _with_gradients(backend, inputs, sharding=None):
  *inputs, cotangent = inputs

  def function(*inputs):
    return attention(*inputs, backend=backend, sharding=sharding)

  @jax.jit
  def value_and_gradients(*inputs):
    value, vjp = jax.vjp(function, *inputs)
    return value, *vjp(cotangent)

  return value_and_gradients(*inputs)


@pytest.mark.parametrize("backend", ["heads_first", "jax"])
def test_gradients_equal_those_of_plain_products(backend):
  inputs = _inputs()
  expected = _with_gradients("xla", inputs)
  for actual, wanted in zip(
    _with_gradients(backend, inputs), expected, strict=True
  ):
    np.testing.assert_allclose(actual, wanted, atol=1e-5)


# 128 fills the kernel's blocks, 196 (B/16) does not; 72 is So400m's head size.
@pytest.mark.parametrize(("length", "size"), [(128, 72), (196, 64)])
def test_splash_equals_plain_products(length, size):
  inputs = _inputs(length, length, heads=1, size=size, batch=1)
  expected = _with_gradients("xla", inputs)
  with pltpu.force_tpu_interpret_mode():
    actual = _with_gradients("splash", inputs)
  for got, wanted in zip(actual, expected, strict=True):
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_splash_leaves_a_single_query_to_plain_products():
  *inputs, _ = _inputs(length=1)
  np.testing.assert_array_equal(
    attention(*inputs, backend="splash"), attention(*inputs, backend="xla")
  )


def test_auto_follows_the_mesh():
  *inputs, _ = _inputs()
  placed = sharding.batch_sharding(sharding.make_mesh())
  text = str(
    jax.make_jaxpr(lambda *x: attention(*x, backend="auto", sharding=placed))(
      *inputs
    )
  )
  first = str(
    jax.make_jaxpr(lambda *x: attention(*x, backend="heads_first"))(*inputs)
  )
  assert text == first


def test_every_name_is_an_implementation():
  *inputs, _ = _inputs()
  inputs = [x.astype(jnp.bfloat16) for x in inputs]
  for backend in fields.ATTENTIONS:
    if backend not in ("cudnn", "splash"):
      assert attention(*inputs, backend=backend).dtype == jnp.bfloat16
