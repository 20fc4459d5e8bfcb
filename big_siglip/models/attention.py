"""Scaled dot-product attention, by whichever implementation suits the chip.

Shape letters: B batch, L tokens (Q of the queries, K of the keys), H heads, h
head size.
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

# Rows and columns of the blocks that the splash kernel works on.
_SPLASH_BLOCK = 128


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  backend: str,
  sharding: NamedSharding | None = None,
) -> jax.Array:
  """Returns softmax(query key^T / sqrt(h)) value; (BQHh, BKHh, BKHh) -> BQHh.

  Bidirectional and without padding mask, as SigLIP's towers are. The softmax is
  computed in float32. To recomputation the result is known as "attention".

  Args:
    query: BQHh.
    key: BKHh.
    value: BKHh.
    backend: a name of `sizes.ATTENTION_NAMES`. "auto" takes what was fastest on
      the chip (docs/performance.md); "splash" needs a TPU and "cudnn" a GPU and
      bfloat16, and both leave a single query, as of attention pooling, to
      "xla".
    sharding: of the batch, which the splash kernel has to be told; its mesh
      also says which chip "auto" is for. None: the default device.
  """
  if backend == "auto":
    backend = _suitable(query, sharding)
  if backend in ("splash", "cudnn") and query.shape[1] == 1:
    backend = "xla"
  if backend == "splash":
    return _splash(query, key, value, sharding)
  if backend == "cudnn":
    attended = jax.nn.dot_product_attention(
      query, key, value, implementation="cudnn"
    )
  elif backend == "jax":
    attended = jax.nn.dot_product_attention(query, key, value)
  else:
    attended = _einsum(query, key, value, heads_first=backend == "heads_first")
  return checkpoint_name(attended, "attention")


def _suitable(query: jax.Array, sharding: NamedSharding | None) -> str:
  platform = jax.default_backend()
  if sharding is not None:
    platform = sharding.mesh.devices.flat[0].platform
  if platform == "cpu":
    return "heads_first"
  if platform == "tpu" and query.shape[1] > _SPLASH_BLOCK:
    return "splash"
  if platform == "gpu" and query.dtype == jnp.bfloat16:
    return "cudnn"
  return "xla"


def _einsum(query, key, value, *, heads_first):
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
  weights = jax.nn.softmax(logits).astype(value.dtype)
  attended = jnp.einsum(f"BHQK,{tokens[1]}->{tokens[0]}", weights, value)
  return attended.swapaxes(1, 2) if heads_first else attended


def _splash(query, key, value, sharding):
  """JAX's Pallas kernel for TPUs, which never writes the logits to memory."""
  length, size = query.shape[1], query.shape[-1]
  surplus = -length % _SPLASH_BLOCK
  if surplus:
    pad = functools.partial(
      jnp.pad, pad_width=((0, 0), (0, surplus), (0, 0), (0, 0))
    )
    query, key, value = map(pad, (query, key, value))
  local = functools.partial(_splash_heads_first, length=length)
  if sharding is not None:
    spec = P(*sharding.spec, "tensor")
    local = jax.shard_map(
      local,
      mesh=sharding.mesh,
      in_specs=(spec, spec, spec),
      out_specs=spec,
      check_vma=False,  # The kernel does not say over what it varies.
    )
  heads_first = (x.swapaxes(1, 2) for x in (query * size**-0.5, key, value))
  return local(*heads_first).swapaxes(1, 2)[:, :length]


def _splash_heads_first(query, key, value, *, length):
  """(BHLh, BHLh, BHLh) -> BHLh, on one device; of L tokens `length` count."""
  # Imported late: it takes a second, and other chips have no use for it.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  _, heads, padded, _ = query.shape
  # The sequence along the lanes: a head size below 128 would leave them empty.
  layout = kernel.QKVLayout.SEQ_MINOR
  block = min(padded, 4 * _SPLASH_BLOCK)
  while padded % block:
    block -= _SPLASH_BLOCK
  blocks = kernel.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    use_fused_bwd_kernel=True,
    q_layout=layout,
    k_layout=layout,
    v_layout=layout,
  )

  mask = masks.MultiHeadMask([masks.FullMask((padded, padded))] * heads)
  attend = kernel.make_splash_mha(
    mask,
    head_shards=1,
    q_seq_shards=1,
    block_sizes=blocks,
    residual_checkpoint_name="attention",
  )
  segments = None
  if padded > length:  # Tokens look at those of their own segment alone.
    ids = (jnp.arange(padded) < length).astype(jnp.int32)
    segments = kernel.SegmentIds(ids, ids)
  return jax.vmap(lambda q, k, v: attend(q, k, v, segments))(query, key, value)
