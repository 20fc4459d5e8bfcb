"""Attention over short sequences as a kernel for TPUs, forward and backward.

SigLIP's sequences are short enough for all logits of a head to lie in a TPU's
fast memory at once. So there is no running softmax as in flash attention, and
nothing but query, key and value is kept for the backward pass.

Of two layouts one makes full tiles of 8 x 128 numbers and is what XLA's
products write without a copy: tokens along the lanes where they fill them,
since heads of 64 or 72 would leave half of them empty; else all heads of a
token beside each other, token after token.

Shape letters: R rows, T tokens of a row, H heads, h head size, D = H h width, L
tokens of a sequence, Q tokens of a row as queries, K as keys.
"""

import functools
import math

import jax
from jax.experimental import pallas as pl

from big_siglip.models.short_kernels import backward, forward

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


def holds(queries: int, keys: int) -> bool:
  """Returns whether `short_attention` has place for the logits of a head."""
  return queries * keys * 16 <= _LOGITS_BYTES


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def short_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  last: jax.Array | None,
  length: int,
  interpret: bool = False,
) -> jax.Array:
  """Returns softmax(query key^T / sqrt(h)) value; RHhQ, 2 x RHhK -> RHhQ.

  Products take their factors in the dtype of the arguments and sum in float32;
  the softmax is float32.

  Args:
    query: RHhQ.
    key: RHhK.
    value: RHhK.
    last: R1Q int32, the place in its row of the last key that a query sees; it
      must see one. None: of its sequence, all.
    length: L; Q if a row is one sequence, else the Q / L sequences of a row do
      not see each other, and Q = K.
    interpret: run on any device, slowly.
  """
  return _call_columns(
    forward, (query, key, value), last, (), length, interpret
  )[0]


def _columns_forward(query, key, value, last, length, interpret):
  attended = short_attention(query, key, value, last, length, interpret)
  return attended, (query, key, value, last)


def _columns_backward(length, interpret, saved, d_attended):
  *arrays, last = saved
  gradients = _call_columns(
    backward, arrays, last, (d_attended,), length, interpret
  )
  return *gradients, None


short_attention.defvjp(_columns_forward, _columns_backward)


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
  return _call_rows(forward, arrays, 1, heads, length, interpret)[0]


def _rows_backward(heads, length, interpret, saved, d_attended):
  arrays = *saved, d_attended
  return _call_rows(backward, arrays, 3, heads, length, interpret)


short_attention_rows.defvjp(
  lambda *args: (short_attention_rows(*args), args[:3]), _rows_backward
)


def _call_columns(kernel, arrays, last, cotangents, length, interpret):
  """Runs a kernel on as many heads of a row as fit."""
  query, key, value = arrays
  _check_shapes((key, value))
  _check_shapes((query[..., 0], key[..., 0]))
  rows, heads, size, queries = query.shape
  keys = key.shape[3]
  packed = length != queries
  if packed and (queries % length or keys != queries):
    raise ValueError(
      f"rows of {queries} queries and {keys} keys cut sequences of {length}"
    )
  bytes_per_head = 14 * size * max(queries, keys) * query.dtype.itemsize
  together = max(
    count
    for count in range(1, heads + 1)
    if heads % count == 0
    and (count == 1 or count * bytes_per_head <= _ARRAYS_BYTES)
  )
  of_queries, of_keys = (
    pl.BlockSpec((1, together, size, x), lambda row, head: (row, head, 0, 0))
    for x in (queries, keys)
  )
  specs, given = [of_queries, of_keys, of_keys], [*arrays]
  if last is not None:
    specs.append(pl.BlockSpec((1, 1, queries), lambda row, head: (row, 0, 0)))
    given.append(last)
  kernel = functools.partial(
    kernel,
    places=[(0, head) for head in range(together)],
    size=size,
    keys_axis=0,
    segment=length if packed else None,
  )
  outputs = 3 if cotangents else 1
  return _call(
    kernel,
    [*given, *cotangents],
    [*specs, *(of_queries for _ in cotangents)],
    list(zip(arrays, specs, strict=False))[:outputs],
    (rows, heads // together),
    interpret,
  )


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
  specs = [block] * len(arrays)
  like = [(x, block) for x in arrays[:outputs]]
  return _call(kernel, arrays, specs, like, grid, interpret)


def _check_shapes(arrays):
  """Blocks are cut by one shape: what has another would be cut wrongly."""
  shapes = {x.shape for x in arrays}
  if len(shapes) > 1:
    raise ValueError(
      f"query, key and value must have one shape, not {sorted(shapes)}"
    )


def _call(kernel, arrays, specs, outputs, grid, interpret):
  """Runs a kernel; `outputs` are (array of its shape and dtype, spec)."""
  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=specs,
    out_specs=[spec for _, spec in outputs],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
    interpret=interpret,
  )(*arrays)


def _sequences_together(length: int) -> int:
  return _SUBLANES // math.gcd(length, _SUBLANES)
