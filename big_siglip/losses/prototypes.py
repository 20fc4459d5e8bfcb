"""Cross-entropy over tens of thousands of prototypes, a chunk at a time.

DINO's loss (arXiv:2104.14294, section 3.1): a teacher's and a student's vector
are compared with all prototypes, and the student's softmax is to be the
teacher's. The scores of 128 patches of 128 images with 65,536 prototypes are
4.3 GB, twice. Here those with one chunk of prototypes exist; sums go on from
chunk to chunk, and the gradient computes the scores again.

Shape letters: b examples, n vectors of the student and m of the teacher (n, or
one that all n are compared with), d width, K prototypes, c of them in a chunk.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from big_siglip.losses.token_cross_entropy import SURE


class Prototypes(NamedTuple):
  """What vectors are compared with.

  Attributes:
    matrix: dK float32, columns of length 1.
    centre: K float32, taken off the scores; zeros for a student's.
    temperature: () float32, by which what is left is divided.
  """

  matrix: jax.Array
  centre: jax.Array
  temperature: jax.Array


class PrototypeLosses(NamedTuple):
  """What is found of vectors.

  Attributes:
    loss: bn, the cross-entropy -sum_k P_teacher log P_student.
    entropy: bm, of P_teacher; without a gradient.
    log_total: bm, log sum_k exp(the teacher's scores); without a gradient.
  """

  loss: jax.Array
  entropy: jax.Array
  log_total: jax.Array


def prototype_cross_entropy(
  student: jax.Array,
  teacher: jax.Array,
  of_student: Prototypes,
  of_teacher: Prototypes,
  *,
  chunk_size: int,
  whole: NamedSharding | None = None,
) -> PrototypeLosses:
  """Returns the cross-entropy of a teacher's and a student's distributions.

  P = softmax((vector matrix - centre) / temperature), in float32; the products
  are in the dtype of the vectors. The gradient goes to the student's vectors
  and matrix, and to nothing of the teacher.

  Args:
    student: bnd.
    teacher: bmd.
    of_student: its prototypes.
    of_teacher: its own.
    chunk_size: c, at most; K / c are whole.
    whole: how a matrix lies where each device has all of it. None: as it is.
  """
  teacher, of_teacher = jax.lax.stop_gradient((teacher, of_teacher))
  of_student, of_teacher = (
    _placed(of, student.dtype, whole) for of in (of_student, of_teacher)
  )
  size = _size(of_student, chunk_size)
  return _compare(size, student, of_student, teacher, of_teacher)


def summed_distribution(
  teacher: jax.Array,
  log_total: jax.Array,
  of_teacher: Prototypes,
  *,
  chunk_size: int,
  whole: NamedSharding | None = None,
) -> jax.Array:
  """Returns the sum over b and m of softmax(scores); K float32.

  Args:
    teacher: bmd.
    log_total: bm, of `prototype_cross_entropy`.
    of_teacher: its prototypes.
    chunk_size: as there.
    whole: the same.
  """
  of_teacher = _placed(of_teacher, teacher.dtype, whole)
  size = _size(of_teacher, chunk_size)

  def visit(_, index):
    scores = _scores(teacher, _chunk(of_teacher, index, size))
    return None, jnp.exp(scores - log_total[..., None]).sum(axis=(0, 1))

  indices = jnp.arange(_count(of_teacher, size))
  return jax.lax.scan(visit, None, indices)[1].reshape(-1)


def chunk_count(prototypes: int, chunk_size: int) -> int:
  """Returns the fewest equal chunks of at most `chunk_size` prototypes."""
  fewest = math.ceil(prototypes / chunk_size)
  return next(n for n in range(fewest, prototypes + 1) if prototypes % n == 0)


def _placed(
  of: Prototypes, dtype: Any, whole: NamedSharding | None
) -> Prototypes:
  """Returns prototypes of a dtype, all of them on each device."""
  matrix = of.matrix.astype(dtype)
  if whole is not None:
    matrix = jax.lax.with_sharding_constraint(matrix, whole)
  return of._replace(matrix=matrix)


def _size(of: Prototypes, chunk_size: int) -> int:
  """Returns c."""
  prototypes = of.matrix.shape[1]
  return prototypes // chunk_count(prototypes, chunk_size)


def _count(of: Prototypes, size: int) -> int:
  """Returns K / c."""
  return of.matrix.shape[1] // size


def _chunk(of: Prototypes, index: jax.Array, size: int) -> Prototypes:
  """Returns a chunk; columns as they lie, since a copy of all is a pass."""
  matrix, centre = (
    jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=-1) for x in of[:2]
  )
  return of._replace(matrix=matrix, centre=centre)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compare(size, student, of_student, teacher, of_teacher):
  return _forward(size, student, of_student, teacher, of_teacher)[0]


def _forward(size, student, of_student, teacher, of_teacher):
  both = student, of_student, teacher, of_teacher
  largest = jnp.maximum(_bound(*both[:2]), _bound(*both[2:]))
  sure = functools.partial(_sums, size=size, running=False)
  # `plan.hlo` counts no exceptions.
  far = jax.named_scope("exception")(
    functools.partial(_sums, size=size, running=True)
  )
  sums = jax.lax.cond(largest < SURE, sure, far, *both)
  top_s, total_s, top_t, total_t, dot_s, dot_t = sums
  log_s, log_t = jnp.log(total_s) + top_s, jnp.log(total_t) + top_t
  found = PrototypeLosses(
    loss=log_s - dot_s / total_t,
    entropy=log_t - dot_t / total_t,
    log_total=log_t,
  )
  return found, (*both, log_s, log_t)


def _bound(vectors, of):
  """Returns what no score is farther from 0 than, () float32.

  Of vectors of length 1, without a centre, that is 1 / temperature, and what a
  column's numbers are rounded by.
  """
  square = jnp.square(vectors.astype(jnp.float32)).sum(-1).max()
  longest = jnp.sqrt(square) * (1 + jnp.finfo(vectors.dtype).eps)
  return (longest + jnp.abs(of.centre).max()) / of.temperature


def _sums(student, of_student, teacher, of_teacher, *, size, running: bool):
  """Returns largest scores and sums; 0 for the largest, unless `running`.

  The largest so far is known after a chunk's product alone: for it a TPU
  computes scores twice, or writes them. Exponentials of scores within `SURE`
  need it not.
  """

  def visit(index, sums):
    s = _scores(student, _chunk(of_student, index, size))
    t = _scores(teacher, _chunk(of_teacher, index, size))
    top_s, total_s, top_t, total_t, dot_s, dot_t = sums
    total_s, top_s, _, _ = _add(total_s, top_s, s, running)
    total_t, top_t, shrink, share = _add(total_t, top_t, t, running)
    dot_s = dot_s * shrink + (share * s).sum(axis=-1)
    dot_t = dot_t * shrink + (share * t).sum(axis=-1)
    return top_s, total_s, top_t, total_t, dot_s, dot_t

  zero = functools.partial(jnp.zeros, dtype=jnp.float32)
  lowest = -jnp.inf if running else 0.0
  low = functools.partial(jnp.full, fill_value=lowest, dtype=jnp.float32)
  bn, bm = student.shape[:2], teacher.shape[:2]
  first = low(bn), zero(bn), low(bm), zero(bm), zero(bn), zero(bm)
  return jax.lax.fori_loop(0, _count(of_student, size), visit, first)


def _add(total, top, scores, running):
  """Returns sum and largest score with those of a chunk.

  And by what sums so far are to be multiplied, and the chunk's summands.
  """
  highest = jnp.maximum(top, scores.max(axis=-1)) if running else top
  shrink = jnp.exp(top - highest)
  summands = jnp.exp(scores - highest[..., None])
  total = total * shrink + summands.sum(axis=-1)
  return total, highest, shrink, summands


def _backward(size, saved, cotangents):
  student, of_student, teacher, of_teacher, log_s, log_t = saved
  factor = cotangents.loss / of_student.temperature

  dtype = of_student.matrix.dtype

  def visit(index, sums):
    d_student, d_matrix = sums
    chunk = _chunk(of_student, index, size)
    s = _scores(student, chunk)
    t = _scores(teacher, _chunk(of_teacher, index, size))
    p_s, p_t = jnp.exp(s - log_s[..., None]), jnp.exp(t - log_t[..., None])
    d_s = (factor[..., None] * (p_s - p_t)).astype(student.dtype)
    d_student += _product("bnc,dc->bnd", d_s, chunk.matrix)
    d_chunk = _product("bnd,bnc->dc", student, d_s).astype(dtype)
    d_matrix = jax.lax.dynamic_update_slice_in_dim(
      d_matrix, d_chunk, index * size, axis=1
    )
    return d_student, d_matrix

  # Each place is written: zeros would be one pass more.
  empty = jax.lax.empty(of_student.matrix.shape, dtype)
  first = jnp.zeros(student.shape, jnp.float32), empty
  d_student, d_matrix = jax.lax.fori_loop(
    0, _count(of_student, size), visit, first
  )
  d_of_student = Prototypes(
    d_matrix,
    jnp.zeros_like(of_student.centre),
    jnp.zeros_like(of_student.temperature),
  )
  return d_student.astype(student.dtype), d_of_student, None, None


_compare.defvjp(_forward, _backward)


def _scores(vectors, of):
  """Returns the scores with prototypes, bmc float32."""
  products = _product("bmd,dc->bmc", vectors, of.matrix)
  return (products - of.centre.reshape(1, 1, -1)) / of.temperature


def _product(axes, a, b):
  return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
