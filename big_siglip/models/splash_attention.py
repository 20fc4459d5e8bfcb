"""JAX's Pallas kernel for TPUs, which never writes the logits to memory.

Shape letters: B batch, H heads, Q tokens as queries, K as keys, h head size.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_siglip.models.short_attention import LANES

# Tokens of a block at most. For each block of keys the backward kernel writes
# gradients of all queries, which are summed outside.
_LONGEST = 8 * LANES


def splash_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None,
  causal: bool,
  sharding: NamedSharding | None,
  interpret: bool = False,
  length: int | None = None,
) -> jax.Array:
  """Returns softmax(query key^T / sqrt(h)) value; (BQHh, BKHh, BKHh) -> BQHh.

  Args:
    query: BQHh.
    key: BKHh.
    value: BKHh.
    mask: BK, True where a key is real; None: all are.
    causal: query i sees the keys up to i.
    sharding: of the batch; None: one device.
    interpret: run on any device, slowly.
    length: of the tokens before padding; Q = K. None: all.
  """
  queries, size = query.shape[1], query.shape[-1]
  lengths = length or queries, length or key.shape[1]
  query, key, value = map(to_whole_blocks, (query, key, value))
  arrays = [x.swapaxes(1, 2) for x in (query * size**-0.5, key, value)]
  local = functools.partial(
    _heads_first, lengths=lengths, causal=causal, interpret=interpret
  )
  if mask is not None:
    arrays.append(to_whole_blocks(mask))
  if sharding is not None:
    spec = P(*sharding.spec, "tensor")
    specs = (spec, spec, spec, sharding.spec)
    local = jax.shard_map(
      local,
      mesh=sharding.mesh,
      in_specs=specs[: len(arrays)],
      out_specs=spec,
      check_vma=False,  # The kernel does not say over what it varies.
    )
  return local(*arrays).swapaxes(1, 2)[:, :queries]


def whole_blocks(length: int) -> int:
  """Returns how long a sequence is that fills the blocks of one of `length`."""
  count = math.ceil(length / _LONGEST)
  return count * LANES * math.ceil(length / (count * LANES))


def to_whole_blocks(x: jax.Array) -> jax.Array:
  """Pads the second axis with zeros; BL... -> BT...."""
  surplus = whole_blocks(x.shape[1]) - x.shape[1]
  if not surplus:
    return x
  pads = ((0, 0), (0, surplus), *((0, 0) for _ in x.shape[2:]))
  return jnp.pad(x, pads)


def _heads_first(query, key, value, mask=None, *, lengths, causal, interpret):
  """(BHQh, BHKh, BHKh, BK) -> BHQh, on one device; `lengths` of Q, K count."""
  # Imported late: it takes a second, and other chips have no use for it.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  heads, shape = query.shape[1], (query.shape[2], key.shape[2])
  seen = masks.CausalMask(shape) if causal else masks.FullMask(shape)
  attend = kernel.make_splash_mha(
    masks.MultiHeadMask([seen] * heads),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=_block_sizes(kernel, *shape, query.dtype.itemsize),
    residual_checkpoint_name="attention",
    interpret=interpret,
  )
  queries = _segments(shape[0], lengths[0])
  if mask is not None:
    return jax.vmap(
      lambda q, k, v, real: attend(q, k, v, kernel.SegmentIds(queries, real))
    )(query, key, value, mask.astype(jnp.int32))
  segments = None
  if shape[1] > lengths[1]:
    same = query.shape == key.shape and lengths[0] == lengths[1]
    keys = queries if same else _segments(shape[1], lengths[1])
    segments = kernel.SegmentIds(queries, keys)
  return jax.vmap(lambda q, k, v: attend(q, k, v, segments))(query, key, value)


def _segments(padded, length):
  """Tokens look at those of their own segment alone: 1 is real, 0 is not."""
  return (jnp.arange(padded) < length).astype(jnp.int32)


def _block_sizes(kernel, queries, keys, itemsize):
  # The sequence along the lanes: a head size below 128 would leave them empty.
  layout = kernel.QKVLayout.SEQ_MINOR
  block_q, block_kv = (_block(x, itemsize) for x in (queries, keys))
  return kernel.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_kv_compute=block_kv,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_kv_dkv_compute=block_kv,
    use_fused_bwd_kernel=True,
    q_layout=layout,
    k_layout=layout,
    v_layout=layout,
  )


def _block(padded, itemsize):
  """Returns the tokens of a block of what `whole_blocks` returned."""
  block = padded // math.ceil(padded / _LONGEST)
  # Of the longest, float32's heads and logits are more than a v4's fast memory.
  return block // 2 if block == _LONGEST and itemsize > 2 else block
