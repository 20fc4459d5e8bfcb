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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def short_attention(
  arrays: tuple[jax.Array, ...],
  last: jax.Array | None,
  length: int,
  interpret: bool = False,
) -> jax.Array:
  """Returns softmax(query key^T / sqrt(h)) value; RHhQ.

  Products take their factors in the dtype of the arguments and sum in float32;
  the softmax is float32.

  Args:
    arrays: of query, key and value, RHhQ and 2 x RHhK; or of what shares an
      array, head by head: R(3H)hQ of all, or RHhQ of query and R(2H)hK of key
      and value.
    last: R1Q int32, the place in its row of the last key that a query sees; it
      must see one. None: of its sequence, all.
    length: L; Q if a row is one sequence, else the Q / L sequences of a row do
      not see each other, and Q = K.
    interpret: run on any device, slowly.
  """
  return _call_columns(forward, arrays, last, (), length, interpret)[0]


def _columns_forward(arrays, last, length, interpret):
  return short_attention(arrays, last, length, interpret), (arrays, last)


def _columns_backward(length, interpret, saved, d_attended):
  arrays, last = saved
  gradients = _call_columns(
    backward, arrays, last, (d_attended,), length, interpret
  )
  return tuple(gradients), None


short_attention.defvjp(_columns_forward, _columns_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def short_attention_rows(
  joint: jax.Array, heads: int, length: int, interpret: bool = False
) -> jax.Array:
  """Returns the same of sequences behind each other; (R L)(3D) -> (R L)D.

  Args:
    joint: [R L, 3 D]: query, key and value, head by head.
    heads: H.
    length: L.
    interpret: run on any device, slowly.
  """
  return _call_rows(forward, joint, (), heads, length, interpret)[0]


def _rows_backward(heads, length, interpret, joint, d_attended):
  given = (d_attended,)
  return tuple(_call_rows(backward, joint, given, heads, length, interpret))


short_attention_rows.defvjp(
  lambda joint, *args: (short_attention_rows(joint, *args), joint),
  _rows_backward,
)

# Of query, key and value: in which of 1, 2 or 3 arrays they are, and which
# ones of a head's parts there.
_SHARED = {
  1: ((0, 0), (0, 1), (0, 2)),
  2: ((0, 0), (1, 0), (1, 1)),
  3: ((0, 0), (1, 0), (2, 0)),
}


def _call_columns(kernel, arrays, last, cotangents, length, interpret):
  """Runs a kernel on as many heads of a row as fit."""
  parts = _SHARED[len(arrays)]
  counts = [sum(at == i for at, _ in parts) for i in range(len(arrays))]
  _check_columns(arrays, counts, length)
  rows, heads, size, queries = arrays[0].shape
  heads, dtype = heads // counts[0], arrays[0].dtype
  longest = max(x.shape[3] for x in arrays)
  together = _heads_together(heads, 14 * size * longest * dtype.itemsize)

  def block(tokens, count=1):
    shape = 1, together * count, size, tokens
    return pl.BlockSpec(shape, lambda row, head: (row, head, 0, 0))

  result = jax.ShapeDtypeStruct((rows, heads, size, queries), dtype)
  of_arrays = [
    block(x.shape[3], count) for x, count in zip(arrays, counts, strict=True)
  ]
  of_result = block(queries)
  given = list(zip(arrays, of_arrays, strict=True))
  made = given if cotangents else [(result, of_result)]
  if last is not None:
    of_last = pl.BlockSpec((1, 1, queries), lambda row, head: (row, 0, 0))
    given = [*given, (last, of_last)]
  kernel = functools.partial(
    kernel,
    arrays=len(arrays),
    places=[
      (*((i, (0, head * counts[i] + part)) for i, part in parts), (0, head))
      for head in range(together)
    ],
    size=size,
    keys_axis=0,
    segment=None if length == queries else length,
  )
  given = [*given, *((x, of_result) for x in cotangents)]
  return _call(kernel, given, made, (rows, heads // together), interpret)


def _check_columns(arrays, counts, length):
  """Blocks are cut by one shape: what has another would be cut wrongly."""
  rows, heads, size, queries = arrays[0].shape
  keys = arrays[-1].shape[3]
  shapes = [x.shape for x in arrays]
  if shapes != [
    (rows, heads // counts[0] * count, size, keys if i else queries)
    for i, count in enumerate(counts)
  ]:
    raise ValueError(f"query, key and value must go together, not {shapes}")
  if length != queries and (queries % length or keys != queries):
    raise ValueError(
      f"rows of {queries} queries and {keys} keys cut sequences of {length}"
    )


def _heads_together(heads, bytes_each):
  return max(
    count
    for count in range(1, heads + 1)
    if heads % count == 0
    and (count == 1 or count * bytes_each <= _ARRAYS_BYTES)
  )


def _call_rows(kernel, joint, cotangents, heads, length, interpret):
  """Runs a kernel on so few sequences that they begin at a tile."""
  tokens, width = joint.shape
  if width % (3 * heads):
    raise ValueError(
      f"{width} features are not query, key and value of {heads} heads"
    )
  width //= 3
  size, together = width // heads, _sequences_together(length)
  if tokens % (together * length):
    raise ValueError(
      f"{tokens} tokens are not a multiple of {together} sequences of {length}"
    )
  spec, of_result = (
    pl.BlockSpec((together * length, x), lambda row: (row, 0))
    for x in (3 * width, width)
  )

  def place(row, part):
    return (
      slice(row * length, (row + 1) * length),
      slice(part * size, (part + 1) * size),
    )

  kernel = functools.partial(
    kernel,
    arrays=1,
    places=[
      (
        *((0, place(row, 3 * head + part)) for part in range(3)),
        place(row, head),
      )
      for row in range(together)
      for head in range(heads)
    ],
    size=size,
    keys_axis=1,
    segment=None,
  )
  result = jax.ShapeDtypeStruct((tokens, width), joint.dtype)
  given = [(joint, spec), *((x, of_result) for x in cotangents)]
  made = [(joint, spec) if cotangents else (result, of_result)]
  grid = (tokens // (together * length),)
  return _call(kernel, given, made, grid, interpret)


def _call(kernel, given, made, grid, interpret):
  """Runs a kernel on arrays and their specs; the results are like `made`."""
  arrays, in_specs = zip(*given, strict=True)
  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=list(in_specs),
    out_specs=[spec for _, spec in made],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in made],
    interpret=interpret,
  )(*arrays)


def _sequences_together(length: int) -> int:
  return _SUBLANES // math.gcd(length, _SUBLANES)
