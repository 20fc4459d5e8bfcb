"""Attention over short sequences as a kernel for TPUs, forward and backward.

SigLIP's sequences are short enough for all logits of a head to lie in a TPU's
fast memory at once. So there is no running softmax as in flash attention, and
nothing but query, key and value is kept for the backward pass.

Of two layouts one makes full tiles of 8 x 128 numbers and is what XLA's
products write without a copy: tokens along the lanes where they fill them,
since heads of 64 or 72 would leave half of them empty; else all heads of a
token beside each other, token after token.

Shape letters: R rows, T tokens of a row, H heads, h head size, D = H h width, L
tokens of a sequence, Q of them as queries, K as keys.
"""

import functools
import math

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

LANES = 128
_SUBLANES = 8
# Bytes of the fast memory: for a backward pass's seven arrays, twice, since the
# next ones are fetched meanwhile, and for the logits of a head, four times.
_ARRAYS_BYTES, _LOGITS_BYTES = 9 * 2**20, 5 * 2**20


def lack(length: int, heads: int, size: int, itemsize: int = 2) -> str:
  """Returns what sequences need to be computed here and lack; "": nothing.

  Args:
    length: L.
    heads: H of one device.
    size: h.
    itemsize: bytes of a number.
  """
  longest = math.isqrt(_LOGITS_BYTES // 16)
  if length > longest:
    return f"needs sequences of at most {longest} tokens, not {length}"
  if fills_lanes(length):
    return ""
  block = _sequences_together(length) * length * heads * size * itemsize
  if 14 * block > _ARRAYS_BYTES:
    return (
      f"needs less width where sequences have {length} tokens, which neither "
      f"divides {LANES} nor is a multiple of it, not {heads * size}"
    )
  return ""


def fills_tiles(rows: int, length: int) -> bool:
  """Returns whether so many sequences of one device make whole tiles."""
  if (rows * length) % LANES:
    return False
  return fills_lanes(length) or rows % _sequences_together(length) == 0


def whole_rows(length: int) -> int:
  """Returns by how many rows at the least a batch may be cut.

  Rows of 128 tokens (`attention.lay_out`) hold pieces of sequences, unless
  these divide 128. What is cut must be whole sequences, and whole tiles.

  Args:
    length: L.
  """
  if fills_lanes(length):
    return 1
  return math.lcm(_sequences_together(length) * length, LANES) // LANES


def fills_lanes(length: int) -> bool:
  """Returns whether sequences, or several of them, are multiples of 128."""
  return LANES % length == 0 or length % LANES == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def short_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  length: int,
  interpret: bool = False,
) -> jax.Array:
  """Returns softmax(query key^T / sqrt(h)) value; 3 x RHhT -> RHhT.

  Products take their factors in the dtype of the arguments and sum in float32;
  the softmax is float32.

  Args:
    query: RHhT.
    key: RHhT.
    value: RHhT.
    length: L; T if a row is one sequence, else the T / L sequences of a row do
      not see each other.
    interpret: run on any device, slowly.
  """
  return _call_columns(_forward, (query, key, value), 1, length, interpret)[0]


def _columns_backward(length, interpret, saved, d_attended):
  arrays = *saved, d_attended
  return _call_columns(_backward, arrays, 3, length, interpret)


short_attention.defvjp(
  lambda *args: (short_attention(*args), args[:3]), _columns_backward
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def short_attention_rows(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  heads: int,
  length: int,
  interpret: bool = False,
) -> jax.Array:
  """Returns the same of sequences behind each other, 3 x (R L)D -> (R L)D.

  Args:
    query: [R L, D].
    key: [R L, D].
    value: [R L, D].
    heads: H.
    length: L.
    interpret: run on any device, slowly.
  """
  arrays = query, key, value
  return _call_rows(_forward, arrays, 1, heads, length, interpret)[0]


def _rows_backward(heads, length, interpret, saved, d_attended):
  arrays = *saved, d_attended
  return _call_rows(_backward, arrays, 3, heads, length, interpret)


short_attention_rows.defvjp(
  lambda *args: (short_attention_rows(*args), args[:3]), _rows_backward
)


def _call_columns(kernel, arrays, outputs, length, interpret):
  """Runs a kernel on as many heads of a row as fit."""
  _check_shapes(arrays)
  rows, heads, size, tokens = arrays[0].shape
  if tokens % length:
    raise ValueError(f"rows of {tokens} tokens cut sequences of {length}")
  bytes_per_head = 14 * size * tokens * arrays[0].dtype.itemsize
  together = max(
    count
    for count in range(1, heads + 1)
    if heads % count == 0
    and (count == 1 or count * bytes_per_head <= _ARRAYS_BYTES)
  )
  block = pl.BlockSpec(
    (1, together, size, tokens), lambda row, head: (row, head, 0, 0)
  )
  places = [(0, head) for head in range(together)]
  segment = None if length == tokens else length
  kernel = functools.partial(
    kernel, places=places, size=size, keys_axis=0, segment=segment
  )
  grid = rows, heads // together
  return _call(kernel, arrays, outputs, grid, block, interpret)


def _call_rows(kernel, arrays, outputs, heads, length, interpret):
  """Runs a kernel on so few sequences that they begin at a tile."""
  _check_shapes(arrays)
  tokens, width = arrays[0].shape
  size, together = width // heads, _sequences_together(length)
  if tokens % (together * length):
    raise ValueError(
      f"{tokens} tokens are not a multiple of {together} sequences of {length}"
    )
  block = pl.BlockSpec((together * length, width), lambda row: (row, 0))
  places = [
    (
      slice(row * length, (row + 1) * length),
      slice(head * size, (head + 1) * size),
    )
    for row in range(together)
    for head in range(heads)
  ]
  kernel = functools.partial(
    kernel, places=places, size=size, keys_axis=1, segment=None
  )
  grid = (tokens // (together * length),)
  return _call(kernel, arrays, outputs, grid, block, interpret)


def _check_shapes(arrays):
  """Blocks are cut by the queries' shape: other keys would be cut wrongly."""
  shapes = {x.shape for x in arrays}
  if len(shapes) > 1:
    raise ValueError(
      f"query, key and value must have one shape, not {sorted(shapes)}"
    )


def _call(kernel, arrays, outputs, grid, block, interpret):
  shape = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[block] * len(arrays),
    out_specs=[block] * outputs,
    out_shape=[shape] * outputs,
    interpret=interpret,
  )(*arrays)


def _sequences_together(length: int) -> int:
  return _SUBLANES // math.gcd(length, _SUBLANES)


def _forward(query, key, value, attended, *, places, size, keys_axis, segment):
  """Writes the heads at `places`, each hL, or Lh where `keys_axis` is 1."""
  for place in places:
    q, k, v = (x[place] for x in (query, key, value))
    weights = _weights(q, k, size, keys_axis, segment)
    if keys_axis == 0:
      result = _product(v, weights, 1, 0)
    else:
      result = _product(weights, v, 1, 0)
    attended[place] = result.astype(attended.dtype)


def _backward(
  query,
  key,
  value,
  d_attended,
  d_query,
  d_key,
  d_value,
  *,
  places,
  size,
  keys_axis,
  segment,
):
  """Writes the gradients of the heads at `places`; see `_forward`."""
  for place in places:
    q, k, v, d = (x[place] for x in (query, key, value, d_attended))
    weights = _weights(q, k, size, keys_axis, segment)
    columns = keys_axis == 0
    d_weights = _product(v, d, 0, 0) if columns else _product(d, v, 1, 1)
    mean = (weights * d_weights).sum(axis=keys_axis, keepdims=True)
    d_logits = weights * (d_weights - mean) * size**-0.5
    if columns:
      d_value[place] = _product(d, weights, 1, 1).astype(d_value.dtype)
      d_key[place] = _product(q, d_logits, 1, 1).astype(d_key.dtype)
      d_query[place] = _product(k, d_logits, 1, 0).astype(d_query.dtype)
    else:
      d_value[place] = _product(weights, d, 0, 0).astype(d_value.dtype)
      d_key[place] = _product(d_logits, q, 0, 0).astype(d_key.dtype)
      d_query[place] = _product(d_logits, k, 1, 0).astype(d_query.dtype)


def _weights(query, key, size, keys_axis, segment):
  """Returns the softmax over the keys in float32, KQ or QK."""
  if keys_axis == 0:
    logits = _product(key, query, 0, 0)
  else:
    logits = _product(query, key, 1, 1)
  logits *= size**-0.5
  if segment is not None:
    row, column = (
      jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) // segment
      for axis in (0, 1)
    )
    logits = jnp.where(row == column, logits, -jnp.inf)
  weights = jnp.exp(logits - logits.max(axis=keys_axis, keepdims=True))
  return weights / weights.sum(axis=keys_axis, keepdims=True)


def _product(a, b, a_axis, b_axis):
  """Multiplies matrices over the named axes, summed in float32."""
  dtype = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
  return jax.lax.dot_general(
    a.astype(dtype),
    b.astype(dtype),
    (((a_axis,), (b_axis,)), ((), ())),
    precision="highest" if dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
