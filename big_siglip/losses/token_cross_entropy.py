"""Cross-entropy of tokens over a large vocabulary, a chunk of tokens at a time.

Logits of 64 x 3 tokens of 32 examples over 256,000 pieces are 6.3 GB. Here
those of one chunk exist, and are computed again for the gradient. Tokens
without a target, half to three quarters of them, are sorted behind all others;
chunks without any target are left out, so that they cost nothing, and none that
has one is.

Shape letters: N tokens, D width, V vocabulary; G devices that share the batch,
n tokens of one, c of a chunk, k chunks.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from big_siglip.sharding import batch_devices

# Up to here float32 holds the exponentials of logits as they are, with room for
# a sum of 10^10 of them and parts of 10^-10. Logits seldom leave it. Without
# their maximum none needs be computed twice, nor written: a TPU sums beside a
# product for nothing.
SURE = 60.0

# Logits of a token whose gradients exist at once, at most, and what they are a
# multiple of. In bfloat16 a TPU's fast memory holds those of 2,048 tokens until
# both products have taken them. Of 256,000 they make 25 pieces.
_PIECE, _TILE = 10_240, 128


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

  found = _score(sharding, cut(hidden), kernel, bias, cut(targets), cut(real))
  back = jnp.argsort(order, axis=1)

  def join(x):
    x = x.swapaxes(0, 1).reshape(groups, -1)[:, :count]
    return jnp.take_along_axis(x, back, axis=1).reshape(shape)

  return TokenLosses(*map(join, found))


def _ones(x: jax.Array) -> tuple[int, ...]:
  return (1,) * (x.ndim - 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _score(sharding, hidden, kernel, bias, targets, real):
  """Returns losses and hits, kGc each, of hidden kGcD."""
  return _forward(sharding, hidden, kernel, bias, targets, real)[0]


def _forward(sharding, hidden, kernel, bias, targets, real):
  cast = _gathered(kernel.astype(hidden.dtype), sharding)

  def compute(hidden, targets, real):
    logits = _logits(hidden, cast, bias)
    total = jnp.log(jnp.exp(logits).sum(axis=-1))
    is_target, places = _is_target(logits, targets)
    own = jnp.where(is_target, logits, 0).sum(axis=-1)
    ids = targets[..., None]
    lower, higher = (
      jnp.where(beside, logits, -jnp.inf).max(axis=-1)
      for beside in (places < ids, places > ids)
    )
    total = jax.lax.cond(
      ((jnp.abs(total) < SURE) | ~real).all(),
      lambda *_: total,
      lambda hidden, top: _far_total(hidden, cast, bias, top),
      hidden,
      jnp.maximum(own, jnp.maximum(lower, higher)),
    )
    correct = (own > lower) & (own >= higher)
    loss, correct = (
      jnp.where(real, x, 0) for x in (total - own, correct.astype(jnp.float32))
    )
    # Infinite: so the exponentials of what is not scored are 0, and no NaN.
    return loss, correct, jnp.where(real, total, jnp.inf)

  def visit(_, chunk):
    nothing = (jnp.zeros(chunk[2].shape, jnp.float32),) * 3
    return None, jax.lax.cond(chunk[0], compute, lambda *_: nothing, *chunk[1:])

  rows = _used(real), hidden, targets, real
  _, (loss, correct, total) = jax.lax.scan(visit, None, rows)
  return (loss, correct), (hidden, kernel, bias, targets, real, total)


def _backward(sharding, saved, cotangents):
  hidden, kernel, bias, targets, real, total = saved
  mesh = None if sharding is None else sharding.mesh
  axis = None if mesh is None else _vocabulary_axis(kernel, mesh)
  shards = 1 if axis is None else mesh.shape[axis]
  shape = shards, kernel.shape[1] // shards
  cast = _gathered(kernel.astype(hidden.dtype), sharding)
  layer = cast.reshape(-1, *shape), bias.reshape(1, 1, *shape)

  def visit(sums, chunk):
    def leave_out(sums, hidden, *_):
      return sums, jnp.zeros_like(hidden)

    index, used, *rows = chunk
    compute = functools.partial(_add_chunk, *layer, index > 0)
    return jax.lax.cond(used, compute, leave_out, sums, *rows)

  # Each device sums its own, so that what they send is one gradient. The first
  # chunk writes all of it: zeros would be one pass more.
  groups = hidden.shape[1]
  empty = tuple(
    jax.lax.empty((groups, *x.shape[:-1], *shape), jnp.float32)
    for x in (kernel, bias)
  )
  if mesh is not None:
    split = P(sharding.spec[0], None, axis)
    empty = (_place(empty[0], mesh, split), empty[1])
  indices = _count(len(hidden))
  used = _used(real) | (indices == 0)
  rows = indices, used, hidden, targets, real, total, cotangents[0]
  sums, d_hidden = jax.lax.scan(visit, empty, rows)
  found = (
    total.sum(axis=0).reshape(like.shape).astype(like.dtype)
    for total, like in zip(sums, (kernel, bias), strict=True)
  )
  return d_hidden, *found, None, None


def _add_chunk(kernel, bias, going, sums, hidden, targets, real, total, d_loss):
  """Returns the sums with a chunk's gradients, and that of its hidden, GcD.

  Args:
    kernel: DsV: s shards of the vocabulary, of which V is one's here.
    bias: 11sV.
    going: () bool, whether there are sums; False: of the first chunk.
    sums: GDsV and GsV, so far.
    hidden: GcD.
    targets: Gc.
    real: Gc.
    total: Gc, logarithms of the sums of exponentials.
    d_loss: Gc.
  """
  _, shards, own = kernel.shape
  size = _piece_size(own)
  factor = jnp.where(real, d_loss, 0)[..., None, None]
  targets, total = targets[..., None, None], total[..., None, None]

  def visit(sums, begin):
    """Adds what a piece of each shard gives, Gcsv."""
    start = jnp.minimum(begin, own - size)  # The last may overlap.
    columns = _piece(kernel, start, size)
    logits = _multiply("GcD,Dsv->Gcsv", hidden, columns)
    logits += _piece(bias, start, size)
    places = start + _count(size).reshape(1, 1, 1, -1)
    written = going | (places[0] < begin)
    ids = own * _count(shards).reshape(1, 1, -1, 1) + places
    d_logits = factor * (jnp.exp(logits - total) - (ids == targets))
    if own % size:
      d_logits = jnp.where(places < begin, 0, d_logits)
    d_bias = d_logits.sum(axis=1)
    d_logits = d_logits.astype(hidden.dtype)
    d_kernel = _multiply("GcD,Gcsv->GDsv", hidden, d_logits)
    d_hidden = _multiply("Gcsv,Dsv->sGcD", d_logits, columns)
    return (
      _add_piece(sums[0], d_kernel, start, written),
      _add_piece(sums[1], d_bias, start, written),
      sums[2] + d_hidden,
    ), None

  d_hidden = jnp.zeros((shards, *hidden.shape), jnp.float32)
  begins = jnp.arange(0, own, size, dtype=jnp.int32)
  (*sums, d_hidden), _ = jax.lax.scan(visit, (*sums, d_hidden), begins)
  return tuple(sums), d_hidden.sum(axis=0).astype(hidden.dtype)


_score.defvjp(_forward, _backward)


@jax.named_scope("exception")  # `plan.hlo` counts no exceptions.
def _far_total(hidden, kernel, bias, top):
  """Returns the logarithm of the sum of any logits' exponentials, Gc."""
  logits = _logits(hidden, kernel, bias)
  return jnp.log(jnp.exp(logits - top[..., None]).sum(axis=-1)) + top


def _used(real: jax.Array) -> jax.Array:
  """Returns k bool, whether any device has a target in a chunk; of kGc."""
  return real.any(axis=(1, 2))


def _gathered(kernel: jax.Array, sharding: NamedSharding | None) -> jax.Array:
  """Returns the kernel as all chunks need it, brought together once."""
  if sharding is None:
    return kernel
  mesh = sharding.mesh
  return _place(kernel, mesh, P(None, _vocabulary_axis(kernel, mesh)))


def _vocabulary_axis(kernel: jax.Array, mesh: Mesh) -> str | None:
  return None if kernel.shape[1] % mesh.shape["tensor"] else "tensor"


def _place(x: jax.Array, mesh: Mesh, spec: P) -> jax.Array:
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _logits(hidden, kernel, bias):
  """Returns GcV float32."""
  return _multiply("GcD,DV->GcV", hidden, kernel) + bias.reshape(1, 1, -1)


def _count(size):
  return jnp.arange(size, dtype=jnp.int32)


def _multiply(axes, x, y):
  return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _piece_size(vocabulary: int) -> int:
  """Returns how large the pieces are, all but alike, of so many logits."""
  count = math.ceil(vocabulary / _PIECE)
  return min(vocabulary, math.ceil(vocabulary / count / _TILE) * _TILE)


def _piece(x, start, size):
  return jax.lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim - 1)


def _add_piece(x, piece, start, written):
  """Adds to what begins at `start` on the last axis, where it was written."""
  piece += jnp.where(written, _piece(x, start, piece.shape[-1]), 0)
  return jax.lax.dynamic_update_slice_in_dim(x, piece, start, axis=x.ndim - 1)


def _is_target(logits, targets):
  """Returns GcV bool, and the ids 11V.

  No gather: where devices share the vocabulary it would bring it together.
  """
  places = _count(logits.shape[-1]).reshape(1, 1, -1)
  return places == targets[..., None], places
