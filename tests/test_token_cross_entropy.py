"""Cross-entropy in chunks equals the plain one, and computes targets alone."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_siglip import sharding
from big_siglip.losses import token_cross_entropy

SHAPE, WIDTH, VOCAB = (8, 3, 7), 16, 37
COUNT = 8 * 3 * 7


def _inputs(share, shift=0.0, vocab=VOCAB):
  rng = np.random.default_rng(0)
  hidden, kernel, bias = (
    np.float32(rng.normal(size=shape))
    for shape in ((*SHAPE, WIDTH), (WIDTH, vocab), (vocab,))
  )
  bias += np.float32(shift)
  targets = rng.integers(0, vocab, SHAPE).astype(np.int32)
  real = rng.random(SHAPE) < share
  weights = np.float32(rng.normal(size=SHAPE))
  return (hidden, kernel, bias), targets, real, weights


def _plain(hidden, kernel, bias, targets, real):
  """Float64 numpy: losses and hits of tokens."""
  logits = np.float64(hidden) @ kernel + bias
  top = logits.max(-1, keepdims=True)
  total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
  own = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return (total - own) * real, (logits.argmax(-1) == targets) * real


def _plain_gradients(hidden, kernel, bias, targets, real, weights):
  logits = np.float64(hidden) @ kernel + bias
  logits -= logits.max(-1, keepdims=True)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  d = (p - np.eye(bias.size)[targets]) * (real * weights)[..., None]
  d_kernel = np.einsum("btld,btlv->dv", hidden, d)
  return d @ np.float64(kernel).T, d_kernel, d.sum((0, 1, 2))


def _check(
  share, chunk_size, split=None, shift=0.0, tolerance=1e-6, vocab=VOCAB
):
  arrays, targets, real, weights = _inputs(share, shift, vocab)

  def loss(*arrays):
    found = token_cross_entropy(
      *arrays, targets, real, chunk_size=chunk_size, sharding=split
    )
    return (found.loss * weights).sum(), found

  (_, found), gradients = jax.jit(
    jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
  )(*arrays)
  wanted, hits = _plain(*arrays, targets, real)
  np.testing.assert_allclose(found.loss, wanted, rtol=1e-6, atol=tolerance)
  np.testing.assert_array_equal(found.correct, hits)
  expected = _plain_gradients(*arrays, targets, real, weights)
  for gradient, want in zip(gradients, expected, strict=True):
    largest = max(np.abs(want).max(), 1e-6)
    np.testing.assert_allclose(gradient, want, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
  "share,chunk_size", [(0.3, 5), (0.3, 1000), (1.0, 16), (0.0, 16), (0.3, 1)]
)
def test_chunks_change_neither_losses_nor_gradients(share, chunk_size):
  _check(share, chunk_size)


@pytest.mark.parametrize(
  "piece,shape", [(8, None), (1, None), (3, (2, 2, 2)), (3, (1, 1, 8))]
)
def test_gradients_of_pieces_of_the_vocabulary_are_those_of_all(
  monkeypatch, piece, shape
):
  """The last one overlaps; devices that share the vocabulary cut their own.

  A product of other sizes may round another way, by a step of the logits.
  """
  loss = importlib.import_module("big_siglip.losses.token_cross_entropy")
  monkeypatch.setattr(loss, "_PIECE", piece)
  monkeypatch.setattr(loss, "_TILE", 1)
  split = shape and sharding.batch_sharding(sharding.make_mesh(*shape))
  vocab = 40 if shape else VOCAB
  (hidden, kernel, bias), *_ = _inputs(0.3, vocab=vocab)
  step = float(np.spacing(np.abs(hidden @ kernel + bias).max()))
  _check(0.3, 5, split, tolerance=step, vocab=vocab)


@pytest.mark.parametrize("shift", [-500.0, -70.0, 70.0, 500.0])
def test_logits_that_no_exponential_holds_are_scored_all_the_same(shift):
  """Of such logits float32 knows no more than its steps there."""
  step = float(np.spacing(np.float32(abs(shift))))
  _check(0.3, 5, shift=shift, tolerance=max(1e-6, step))


def test_a_loss_beyond_all_exponentials_is_a_number():
  hidden, kernel = jnp.full((1, 1, 1, 1), 1.0), jnp.array([[400.0, 0.0, -9.0]])
  given = hidden, kernel, jnp.zeros(3)
  target, real = jnp.full((1, 1, 1), 2), jnp.full((1, 1, 1), True)

  def loss(*given):
    return token_cross_entropy(*given, target, real, chunk_size=4).loss.sum()

  value, (_, d_kernel, _) = jax.value_and_grad(loss, (0, 1, 2))(*given)
  assert value == 409
  np.testing.assert_array_equal(d_kernel, [[1, 0, -1]])


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_devices_score_their_own_tokens(shape):
  mesh = sharding.make_mesh(*shape)
  _check(0.3, 5, sharding.batch_sharding(mesh))


def test_of_several_likeliest_the_first_is_the_guess():
  """A decoder that has learned nothing yet guesses no word right by chance."""
  _, targets, real, _ = _inputs(1.0)
  zeros = jnp.zeros((*SHAPE, WIDTH)), jnp.zeros((WIDTH, VOCAB))
  found = token_cross_entropy(
    *zeros, jnp.zeros(VOCAB), targets, real, chunk_size=16
  )
  np.testing.assert_array_equal(found.correct, targets == 0)
  np.testing.assert_allclose(found.loss, np.log(VOCAB), rtol=1e-6)


def test_no_logits_but_those_of_a_chunk_exist():
  arrays, targets, real, _ = _inputs(0.3)

  def loss(*arrays):
    return token_cross_entropy(*arrays, targets, real, chunk_size=8).loss.sum()

  text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).as_text()
  assert f"1x8x{VOCAB}xf32" in text
  for whole in (f"{COUNT}x{VOCAB}xf32", f"{'x'.join(map(str, SHAPE))}x{VOCAB}"):
    assert whole not in text


def test_chunks_without_a_target_are_left_out():
  """What stands where nothing is scored is never looked at: not even NaN."""
  arrays, targets, real, _ = _inputs(0.3)
  hidden = np.where(real[..., None], arrays[0], np.nan)

  def loss(hidden, kernel, bias):
    found = token_cross_entropy(
      hidden, kernel, bias, targets, real, chunk_size=1
    )
    return found.loss.sum()

  value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(
    hidden, *arrays[1:]
  )
  np.testing.assert_allclose(
    value, _plain(*arrays, targets, real)[0].sum(), rtol=1e-6
  )
  assert all(np.isfinite(gradient).all() for gradient in gradients)
