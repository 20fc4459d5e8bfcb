"""Cross-entropy of tokens over a large vocabulary, a chunk of tokens at a time.

Logits of 64 x 3 tokens of 32 examples over 256,000 pieces are 6.3 GB. Here
those of one chunk exist, and are computed again for the gradient. Tokens
without a target, half to three quarters of them, are sorted behind all others;
chunks without any target are left out, so that they cost nothing, and none that
has one is.

Shape letters: N tokens, D width, V vocabulary; G devices that share the batch,
n tokens of one, c of a chunk, k chunks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from big_siglip.sharding import batch_devices


class TokenLosses(NamedTuple):
  """What was found of each token; 0 where there is no target.

  Attributes:
    loss: minus the logarithm of its probability, float32.
    correct: 1 where it is the likeliest one (the first of several), float32;
      without a gradient.
  """

  loss: jax.Array
  correct: jax.Array


def token_cross_entropy(
  hidden: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  targets: jax.Array,
  real: jax.Array,
  *,
  chunk_size: int,
  sharding: NamedSharding | None = None,
) -> TokenLosses:
  """Returns -log softmax(hidden kernel + bias)[target] of tokens; [...].

  Args:
    hidden: [..., D]; its dtype is that of the products.
    kernel: DV.
    bias: V.
    targets: [...] int32, 0 <= id < V where there is one.
    real: [...] bool, whether there is a target.
    chunk_size: c, tokens of a device whose logits exist at once.
    sharding: of the batch, the first dimension: each device scores its own.
      None: there is one device.
  """
  groups = 1 if sharding is None else batch_devices(sharding.mesh)
  if targets.shape[0] % groups:  # As when parameters are initialised.
    groups, sharding = 1, None
  width, shape = hidden.shape[-1], targets.shape
  hidden = hidden.reshape(groups, -1, width)
  targets, real = targets.reshape(groups, -1), real.reshape(groups, -1)
  if sharding is not None:
    hidden, targets, real = (
      jax.lax.with_sharding_constraint(x, sharding)
      for x in (hidden, targets, real)
    )
  count = targets.shape[1]
  size = min(chunk_size, count)
  order = jnp.argsort(~real, axis=1, stable=True)  # Those with a target first.
  padding = [(0, 0), (0, -count % size)]

  def cut(x):
    """Returns Gn... in that order as kGc..., with padding at the end."""
    x = jnp.take_along_axis(x, order.reshape(*order.shape, *_ones(x)), axis=1)
    x = jnp.pad(x, padding + [(0, 0)] * (x.ndim - 2))
    return x.reshape(groups, -1, size, *x.shape[2:]).swapaxes(0, 1)

  found = _score(cut(hidden), kernel, bias, cut(targets), cut(real))
  back = jnp.argsort(order, axis=1)

  def join(x):
    x = x.swapaxes(0, 1).reshape(groups, -1)[:, :count]
    return jnp.take_along_axis(x, back, axis=1).reshape(shape)

  return TokenLosses(*map(join, found))


def _ones(x: jax.Array) -> tuple[int, ...]:
  return (1,) * (x.ndim - 2)


@jax.custom_vjp
def _score(hidden, kernel, bias, targets, real):
  """Returns losses and hits, kGc each, of hidden kGcD."""
  return _forward(hidden, kernel, bias, targets, real)[0]


def _forward(hidden, kernel, bias, targets, real):
  cast = kernel.astype(hidden.dtype)

  def compute(hidden, targets, real):
    logits = _logits(hidden, cast, bias)
    top = logits.max(axis=-1, keepdims=True)
    total = jnp.log(jnp.exp(logits - top).sum(axis=-1)) + top[..., 0]
    is_target, places = _is_target(logits, targets)
    loss = total - jnp.where(is_target, logits, 0).sum(axis=-1)
    last = logits.shape[-1]
    first = jnp.where(logits == top, places, last).min(axis=-1)
    found = loss, (first == targets).astype(jnp.float32), total
    return tuple(jnp.where(real, x, 0) for x in found)

  def visit(_, chunk):
    nothing = (jnp.zeros(chunk[1].shape, jnp.float32),) * 3
    return None, jax.lax.cond(
      chunk[2].any(), compute, lambda *_: nothing, *chunk
    )

  _, (loss, correct, total) = jax.lax.scan(visit, None, (hidden, targets, real))
  return (loss, correct), (hidden, kernel, bias, targets, real, total)


def _backward(saved, cotangents):
  hidden, kernel, bias, targets, real, total = saved
  cast = kernel.astype(hidden.dtype)

  def compute(sums, hidden, targets, real, total, d_loss):
    logits = _logits(hidden, cast, bias)
    is_target, _ = _is_target(logits, targets)
    factor = jnp.where(real, d_loss, 0)[..., None]
    d_logits = factor * (jnp.exp(logits - total[..., None]) - is_target)
    d_bias = sums[1] + d_logits.sum(axis=(0, 1))
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = jnp.einsum(
      "GcV,DV->GcD", d_logits, cast, preferred_element_type=jnp.float32
    ).astype(hidden.dtype)
    d_kernel = sums[0] + jnp.einsum(
      "GcD,GcV->DV", hidden, d_logits, preferred_element_type=jnp.float32
    )
    return (d_kernel, d_bias), d_hidden

  def visit(sums, chunk):
    def leave_out(sums, hidden, *_):
      return sums, jnp.zeros_like(hidden)

    return jax.lax.cond(chunk[2].any(), compute, leave_out, sums, *chunk)

  zeros = jnp.zeros(kernel.shape), jnp.zeros(bias.shape)
  rows = hidden, targets, real, total, cotangents[0]
  (d_kernel, d_bias), d_hidden = jax.lax.scan(visit, zeros, rows)
  found = d_kernel.astype(kernel.dtype), d_bias.astype(bias.dtype)
  return d_hidden, *found, None, None


_score.defvjp(_forward, _backward)


def _logits(hidden, kernel, bias):
  """Returns GcV float32."""
  logits = jnp.einsum(
    "GcD,DV->GcV", hidden, kernel, preferred_element_type=jnp.float32
  )
  return logits + bias.reshape(1, 1, -1)


def _is_target(logits, targets):
  """Returns GcV bool, and the ids 11V.

  No gather: where devices share the vocabulary it would bring it together.
  """
  places = jnp.arange(logits.shape[-1], dtype=jnp.int32).reshape(1, 1, -1)
  return places == targets[..., None], places
