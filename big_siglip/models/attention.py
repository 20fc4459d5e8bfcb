"""Scaled dot-product attention, by whichever implementation suits the chip.

Shape letters: B batch, L tokens (Q of the queries, K of the keys), H heads, h
head size, D = H h width; R rows of T tokens, see `lay_out`.
"""

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_siglip.models.backends import choose, platform_of
from big_siglip.models.short_attention import (
  LANES,
  short_attention,
  short_attention_rows,
)
from big_siglip.models.splash_attention import (
  splash_attention,
  to_whole_blocks,
  whole_blocks,
)


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  backend: str,
  sharding: NamedSharding | None = None,
  length: int | None = None,
  mask: jax.Array | None = None,
  causal: bool = False,
  parallel: jax.Array | None = None,
) -> jax.Array:
  """Returns softmax(query key^T / sqrt(h)) value; (BQHh, BKHh, BKHh) -> BQHh.

  The softmax is computed in float32. What stands in a key or value that is not
  real changes nothing, and a query that sees no key gets zeros. To
  recomputation the result is known as "attention".

  Args:
    query: BQHh.
    key: BKHh.
    value: BKHh.
    backend: a name of `words.ATTENTIONS`; see `backends.choose`.
    sharding: of the batch, which kernels have to be told; its mesh also says
      which chip it is for. None: the default device.
    length: of the sequences as `lay_out` has them: behind each other in a row
      for "short", before padding for "splash". None: a row is a sequence.
    mask: BK bool, True where a key is real. None: all are.
    causal: query i sees the keys of its sequence up to i; Q = K.
    parallel: B bool, or BS where a row holds S sequences, of a causal attention
      without mask: the sequences whose queries see all their keys all the same.
      None: none of them.

  Raises:
    ValueError: shapes do not go together.
    UserError: what `backend` names cannot compute this.
  """
  _check(query, key, value, backend, length, mask, causal, parallel)
  packed = length is not None and length != query.shape[1]
  if not packed:
    batch, queries, heads, size = query.shape
    backend = choose(
      backend,
      batch,
      queries,
      heads,
      size,
      query.dtype,
      sharding,
      keys=key.shape[1],
      mask=mask is not None,
      causal=causal,
      mixed=parallel is not None,
    )
  if mask is not None:
    # Not even a weight of zero makes zeros of what may stand there.
    key, value = (jnp.where(mask[:, :, None, None], x, 0) for x in (key, value))
  if backend == "short":
    return joint_attention(
      (query, key, value),
      length=length or query.shape[1],
      size=query.shape[-1],
      sharding=sharding,
      causal=causal,
      parallel=parallel,
    )
  if backend == "splash":
    interpret = platform_of(sharding) != "tpu"
    real = length if packed else None
    attended = splash_attention(
      query, key, value, mask, causal, sharding, interpret, real
    )
  elif backend == "cudnn":
    attended = checkpoint_name(
      _cudnn(query, key, value, mask, causal, parallel), "attention"
    )
  else:
    seen = _seen(query.shape[1], key.shape[1], mask, causal, parallel)
    attended = checkpoint_name(
      _einsum(query, key, value, seen, backend == "heads_first"), "attention"
    )
  if mask is not None and causal:  # The first keys may not be real.
    seeing = jnp.cumsum(mask, axis=1) > 0
    attended = jnp.where(seeing[:, :, None, None], attended, 0)
  return attended


def _check(query, key, value, backend, length, mask, causal, parallel):
  """Some kernels would cut or repeat what does not fit, and say nothing."""
  batch, queries, *heads = query.shape
  if not key.shape == value.shape == (batch, key.shape[1], *heads):
    raise ValueError(
      f"query {query.shape}, key {key.shape} and value {value.shape} must be "
      "(BQHh, BKHh, BKHh)"
    )
  if mask is not None and (
    mask.shape != key.shape[:2] or mask.dtype != jnp.bool_
  ):
    raise ValueError(
      f"mask {mask.dtype}{mask.shape} must be bool{key.shape[:2]}, BK"
    )
  if causal and queries != key.shape[1]:
    raise ValueError(
      f"causal attention of {queries} queries to {key.shape[1]} keys: must be "
      "as many"
    )
  if parallel is not None and (mask is not None or not causal):
    raise ValueError("parallel: is for causal attention without mask")
  if length is None or length == queries:
    return
  if backend == "splash" and length < queries == key.shape[1]:
    return
  if backend != "short" or mask is not None or queries % length:
    raise ValueError(
      f"rows of {queries} tokens of sequences of {length}: must be whole "
      f'sequences, without mask, and for "short", not "{backend}"'
    )


def lay_out(
  x: jax.Array, backend: str, sharding: NamedSharding | None
) -> jax.Array:
  """Returns sequences as a kernel likes them through all blocks, BLD -> RTD.

  For "short" in rows of 128 tokens: XLA then keeps the tokens of a sequence
  beside each other. For 128 sequences of 64 or 196 tokens a device it would
  not, and copy around the kernel. For "splash" with padding behind, where that
  is at most a third: it takes whole blocks, and to pad and to cut its arrays in
  every block takes a TPU longer than to compute the padding. Sequences that
  fill rows or blocks, and those of all others, stay as they are.
  """
  length = x.shape[1]
  if backend == "short" and length % LANES:
    return _reshape(x, (-1, LANES, x.shape[2]), sharding)
  if backend == "splash" and (whole_blocks(length) - length) * 3 <= length:
    return to_whole_blocks(x)
  return x


def lay_back(
  x: jax.Array, length: int, backend: str, sharding: NamedSharding | None
) -> jax.Array:
  """Undoes `lay_out`; RTD -> BLD with L = `length`."""
  if x.shape[1] == length:
    return x
  if backend == "short":
    return _reshape(x, (-1, length, x.shape[2]), sharding)
  return x[:, :length]


def _reshape(x, shape, sharding):
  """Reshapes what each device has."""
  if sharding is None:
    return x.reshape(shape)
  return jax.shard_map(
    lambda x: x.reshape(shape),
    mesh=sharding.mesh,
    in_specs=sharding.spec,
    out_specs=sharding.spec,
  )(x)


def _einsum(query, key, value, seen, heads_first):
  """Plain products. A CPU multiplies contiguous heads up to twice as fast."""
  tokens = "BHQh", "BHKh"
  if heads_first:
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
  else:
    tokens = "BQHh", "BKHh"
  query *= query.shape[-1] ** -0.5
  logits = jnp.einsum(
    f"{tokens[0]},{tokens[1]}->BHQK",
    query,
    key,
    preferred_element_type=jnp.float32,
  )
  if seen is not None:
    # Finite: a row of -inf alone would have no softmax.
    logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits).astype(value.dtype)
  attended = jnp.einsum(f"BHQK,{tokens[1]}->{tokens[0]}", weights, value)
  return attended.swapaxes(1, 2) if heads_first else attended


def _seen(queries, keys, mask, causal, parallel):
  """Returns which keys a query sees, to broadcast to BHQK; None: all."""
  seen = None if mask is None else mask[:, None, None, :]
  if causal:
    earlier = jnp.tri(queries, keys, dtype=bool)[None, None]
    if parallel is not None:
      earlier |= parallel[:, None, None, None]
    seen = earlier if seen is None else seen & earlier
  return seen


def _last(shape, length, parallel):
  """Returns which key of its row a causal query sees last; B1Q int32."""
  place = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
  if parallel is not None:
    whole = jnp.repeat(parallel.reshape(shape[0], -1), length, axis=1)
    place = jnp.where(whole, place - place % length + length - 1, place)
  return place[:, None]


def _cudnn(query, key, value, mask, causal, parallel):
  if parallel is not None:
    mask = _seen(query.shape[1], key.shape[1], None, causal, parallel)
    causal = False
  elif mask is not None:  # cuDNN wants the whole, but for the heads.
    shape = query.shape[0], 1, query.shape[1], key.shape[1]
    mask = jnp.broadcast_to(mask[:, None, None, :], shape)
  return jax.nn.dot_product_attention(
    query, key, value, mask=mask, is_causal=causal, implementation="cudnn"
  )


def joint_attention(
  arrays: tuple[jax.Array, ...],
  *,
  length: int,
  size: int,
  sharding: NamedSharding | None,
  causal: bool = False,
  parallel: jax.Array | None = None,
) -> jax.Array:
  """Returns `attention` of "short" of fewer arrays; RTHh, or RTD.

  Args:
    arrays: as of `short_attention`, tokens first: RT(3H)h, or RTHh and RK(2H)h,
      or three; or one RT(3D), for `short_attention_rows`.
    length: as of `attention`.
    size: h.
    sharding: as of `attention`.
    causal: as of `attention`.
    parallel: the same.
  """
  shape = arrays[0].shape
  last = _last(shape[:2], length, parallel) if causal else None
  interpret = platform_of(sharding) != "tpu"

  def columns(arrays, last):
    arrays = tuple(x.transpose(0, 2, 3, 1) for x in arrays)
    attended = short_attention(arrays, last, length, interpret)
    return checkpoint_name(attended, "attention").transpose(0, 3, 1, 2)

  def rows(arrays, last):
    del last
    (joint,) = arrays
    heads = joint.shape[2] // (3 * size)
    flat = joint.reshape(-1, joint.shape[2])
    attended = checkpoint_name(
      short_attention_rows(flat, heads, length, interpret), "attention"
    )
    return attended.reshape(*joint.shape[:2], -1)

  kernel = rows if len(shape) == 3 else columns
  if sharding is None:
    return kernel(arrays, last)
  spec = P(*sharding.spec, None, "tensor")
  return jax.shard_map(
    kernel,
    mesh=sharding.mesh,
    in_specs=(spec, sharding.spec),
    out_specs=spec,
    check_vma=False,  # The kernel does not say over what it varies.
  )(arrays, last)
