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

from big_siglip.models.short_attention import (
  LANES,
  short_attention,
  short_attention_rows,
  suits,
)

# Rows and columns of the blocks that the splash kernel works on.
_SPLASH_BLOCK = LANES


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  backend: str,
  sharding: NamedSharding | None = None,
  length: int | None = None,
) -> jax.Array:
  """Returns softmax(query key^T / sqrt(h)) value; (BQHh, BKHh, BKHh) -> BQHh.

  Bidirectional and without padding mask, as SigLIP's towers are. The softmax is
  computed in float32. To recomputation the result is known as "attention".

  Args:
    query: BQHh.
    key: BKHh.
    value: BKHh.
    backend: a name of `fields.ATTENTIONS`. "auto" takes what was fastest on
      the chip (docs/performance.md); "short" and "splash" need a TPU and
      "cudnn" a GPU and bfloat16, and all leave a single query, as of attention
      pooling, to "xla".
    sharding: of the batch, which the splash kernel has to be told; its mesh
      also says which chip "auto" is for. None: the default device.
    length: of the sequences that lie behind each other in a row, for "short";
      see `lay_out`. None: a row is a sequence.
  """
  if backend == "auto":
    backend = choose(backend, *query.shape, query.dtype, sharding)
  if backend in ("short", "splash", "cudnn") and query.shape[1] == 1:
    backend = "xla"
  if backend == "short":
    return _short(query, key, value, sharding, length or query.shape[1])
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


def choose(
  backend: str,
  batch: int,
  length: int,
  heads: int,
  size: int,
  dtype: str,
  sharding: NamedSharding | None = None,
) -> str:
  """Returns what "auto" stands for; what is named already stays.

  Args:
    backend: a name of `fields.ATTENTIONS`. "short" also stays only for what
      its kernel can hold.
    batch: B, of all devices.
    length: L.
    heads: H, of all devices.
    size: h.
    dtype: of the computation.
    sharding: of the batch; None: the default device.
  """
  if backend not in ("auto", "short"):
    return backend
  devices = 1 if sharding is None else sharding.num_devices
  tensor = 1 if sharding is None else sharding.mesh.shape["tensor"]
  sequences = batch // max(devices // tensor, 1)
  itemsize = jnp.dtype(dtype).itemsize
  short = suits(sequences, length, heads // tensor, size, itemsize)
  platform = _platform(sharding)
  if short and (backend == "short" or platform == "tpu"):
    return "short"
  if platform == "cpu":
    return "heads_first"
  if platform == "tpu" and length > LANES:
    return "splash"
  if platform == "gpu" and jnp.dtype(dtype) == jnp.bfloat16:
    return "cudnn"
  return "xla"


def lay_out(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
  """Returns sequences in rows of 128 tokens, BLD -> RTD, for "short".

  XLA then keeps the tokens of a sequence beside each other. For 128 sequences
  of 64 or 196 tokens a device it would not, and copy around the kernel.
  Sequences of a multiple of 128 tokens stay as they are.
  """
  if x.shape[1] % LANES == 0:
    return x
  return _reshape(x, (-1, LANES, x.shape[2]), sharding)


def lay_back(
  x: jax.Array, length: int, sharding: NamedSharding | None
) -> jax.Array:
  """Undoes `lay_out`; RTD -> BLD with L = `length`."""
  if x.shape[1] == length:
    return x
  return _reshape(x, (-1, length, x.shape[2]), sharding)


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


def _platform(sharding: NamedSharding | None) -> str:
  if sharding is None:
    return jax.default_backend()
  return sharding.mesh.devices.flat[0].platform


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


def flat_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  head_size: int,
  length: int,
  sharding: NamedSharding | None,
) -> jax.Array:
  """Returns `attention` of "short" where heads lie flat; 3 x RTD -> RTD.

  Args:
    query: RTD, as of `lay_out`.
    key: RTD.
    value: RTD.
    head_size: h.
    length: L; see `short_attention.fills_lanes` for which.
    sharding: of the batch; None: the default device.
  """
  interpret = _platform(sharding) != "tpu"

  def rows(*arrays):
    shape = arrays[0].shape
    arrays = (x.reshape(-1, shape[2]) for x in arrays)
    heads = shape[2] // head_size
    attended = short_attention_rows(*arrays, heads, length, interpret)
    return checkpoint_name(attended, "attention").reshape(shape)

  return _on_each_device(rows, sharding)(query, key, value)


def _short(query, key, value, sharding, length):
  """Our kernel for TPUs; 3 x RTHh -> RTHh."""
  interpret = _platform(sharding) != "tpu"

  def columns(*arrays):
    arrays = (x.transpose(0, 2, 3, 1) for x in arrays)
    attended = short_attention(*arrays, length, interpret)
    return checkpoint_name(attended, "attention").transpose(0, 3, 1, 2)

  return _on_each_device(columns, sharding)(query, key, value)


def _on_each_device(kernel, sharding):
  """Returns a function of three arrays [B, T, heads or D, ...]."""
  if sharding is None:
    return kernel
  spec = P(*sharding.spec, None, "tensor")
  return jax.shard_map(
    kernel,
    mesh=sharding.mesh,
    in_specs=(spec, spec, spec),
    out_specs=spec,
    check_vma=False,  # The kernel does not say over what it varies.
  )


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
