"""CLIP's softmax loss on a ring of devices; never holds the n x n matrix.

A softmax needs the sums of its rows and columns before it has a gradient, so
the texts travel twice: once for the log-sum-exps, once for the gradients.

Shape letters: n examples of the whole batch, b of one device, c of one tile, D
embedding width.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from big_siglip.losses.statistics import from_sums, LogitStatistics
from big_siglip.losses.travel import (
  as_factor,
  check_dtype,
  full_like,
  product,
  tile_rows,
  travel_ring,
)


def ring_softmax_loss(
  image: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array,
  *,
  mesh: Mesh,
  axes: Sequence[str],
  chunk_size: int | None = None,
  dtype: str = "float32",
  statistics: bool = False,
) -> jax.Array | tuple[jax.Array, LogitStatistics]:
  """Returns `softmax_loss`, from embeddings that are split over `axes`.

  Memory for logits is b x b at once, or chunk_size x b, whatever the number of
  devices.

  Args:
    image: [n, D] float, normalised, the first dimension split over `axes`.
    text: [n, D] float, normalised, split alike; row i belongs to image i.
    logit_scale: () the log of the inverse temperature.
    logit_bias: () a softmax does not see a common shift: without effect but on
      the statistics.
    mesh: the devices.
    axes: mesh axes that share the batch; over others everything is replicated.
    chunk_size: images whose logits a device computes at once; must divide b.
      None: all b.
    dtype: of the products' factors and of the travelling texts; sums and the
      travelling gradient stay float32.
    statistics: return (loss, `LogitStatistics`).

  Returns:
    () float32, the mean of both directions' cross entropies.

  Raises:
    UserError: the devices do not divide n, chunk_size does not divide b, or the
      dtype is another.
  """
  check_dtype(dtype)
  n, axes = len(image), tuple(axes)
  options = {
    "mesh": mesh,
    "axes": axes,
    "chunk_size": tile_rows(n, mesh, axes, chunk_size),
    "dtype": dtype,
  }
  split = P(axes)
  seen_specs = (P(), P(), split) if statistics else None
  sums = jax.shard_map(
    functools.partial(_sums, statistics=statistics, **options),
    mesh=mesh,
    in_specs=(split, split, P()),
    out_specs=(P(), split, split, seen_specs),
  )
  gradients = jax.shard_map(
    functools.partial(_gradients, **options),
    mesh=mesh,
    in_specs=(split, split, P(), split, split),
    out_specs=(split, split, P()),
  )
  arguments = (image, text, logit_scale)
  dtypes = tuple(jnp.result_type(x) for x in arguments)

  @jax.custom_vjp
  def loss(*arguments):
    total, _, _, seen = sums(*arguments)
    return total / (2 * n), seen

  def forward(*arguments):
    total, row_sums, column_sums, seen = sums(*arguments)
    d_arguments = gradients(*arguments, row_sums, column_sums)
    return (total / (2 * n), seen), d_arguments

  def backward(gradients, cotangents):
    scaled = jax.tree.map(lambda g: cotangents[0] / (2 * n) * g, gradients)
    return jax.tree.map(lambda g, dtype: g.astype(dtype), scaled, dtypes)

  loss.defvjp(forward, backward)
  value, seen = loss(*arguments)
  if not statistics:
    return value
  shifted = from_sums(n, *seen)
  shift = jax.lax.stop_gradient(logit_bias)
  return value, jax.tree.map(lambda x: x + shift, shifted)


def _tile(image, text, scale, *, start, first, own, chunk_size, dtype):
  """Returns a tile's images cD, its logits cb and which of them match."""
  rows = jax.lax.dynamic_slice_in_dim(image, start, chunk_size)
  logits = scale * product("iD,jD->ij", rows, text, dtype)
  columns = first + jnp.arange(len(text))[None]
  matching = (start + jnp.arange(chunk_size))[:, None] == columns
  return rows, logits, matching & own


def _sums(image, text, logit_scale, *, mesh, axes, statistics, **options):
  """Sums both cross entropies; (bD, bD, ()) -> ((), b, b, sums of statistics).

  Returns:
    The sum over both directions, the log-sum-exp of the logits over each
    image's texts and over each text's images, and (sum of positives, sum of
    negatives, b hardest negatives) or None.
  """
  b, scale = len(image), jnp.exp(logit_scale)
  starts = jnp.arange(0, b, options["chunk_size"])

  def visit(text, columns, staying, own, first):
    def tile(carry, start):
      columns, positives, negatives = carry
      _, logits, matching = _tile(
        image, text, scale, start=start, first=first, own=own, **options
      )
      columns = jnp.logaddexp(columns, jax.nn.logsumexp(logits, axis=0))
      positives += jnp.where(matching, logits, 0.0).sum()
      of_rows = [jax.nn.logsumexp(logits, axis=1)]
      if statistics:
        negatives += jnp.where(matching, 0.0, logits).sum()
        of_rows.append(jnp.where(matching, -jnp.inf, logits).max(axis=1))
      return (columns, positives, negatives), of_rows

    rows, hardest, positives, negatives = staying
    (columns, positives, negatives), of_rows = jax.lax.scan(
      tile, (columns, positives, negatives), starts
    )
    rows = jnp.logaddexp(rows, of_rows[0].reshape(b))
    if statistics:
      hardest = jnp.maximum(hardest, of_rows[1].reshape(b))
    return columns, (rows, hardest, positives, negatives)

  nothing, zero = full_like(image[:, 0], -jnp.inf), full_like(image[0, 0])
  columns, (rows, hardest, positives, negatives) = travel_ring(
    visit,
    ahead=as_factor(text, options["dtype"]),
    behind=nothing,
    staying=(nothing, nothing, zero, zero),
    mesh=mesh,
    axes=axes,
  )
  total, positives, negatives = jax.lax.psum(
    ((rows + columns).sum() - 2 * positives, positives, negatives), axes
  )
  seen = (positives, negatives, hardest) if statistics else None
  return total, rows, columns, seen


def _gradients(
  image, text, logit_scale, rows, columns, *, mesh, axes, **options
):
  """Returns what `_sums` adds up, differentiated; -> (bD, bD, ())."""
  b, scale = len(image), jnp.exp(logit_scale)
  starts = jnp.arange(0, b, options["chunk_size"])

  def visit(ahead, d_text, staying, own, first):
    text, columns = ahead
    d_image, d_scale = staying

    def tile(carry, start):
      d_text, d_scale = carry
      images, logits, matching = _tile(
        image, text, scale, start=start, first=first, own=own, **options
      )
      sums = jax.lax.dynamic_slice_in_dim(rows, start, options["chunk_size"])
      d_logits = jnp.exp(logits - sums[:, None])
      d_logits += jnp.exp(logits - columns[None])
      d_logits -= jnp.where(matching, 2.0, 0.0)
      d_scale += (d_logits * logits).sum()
      d_logits *= scale
      d_text += product("ij,iD->jD", d_logits, images, options["dtype"])
      return (d_text, d_scale), product(
        "ij,jD->iD", d_logits, text, options["dtype"]
      )

    (d_text, d_scale), added = jax.lax.scan(tile, (d_text, d_scale), starts)
    return d_text, (d_image + added.reshape(d_image.shape), d_scale)

  d_text, (d_image, d_scale) = travel_ring(
    visit,
    ahead=(as_factor(text, options["dtype"]), columns),
    behind=full_like(text),
    staying=(full_like(image), full_like(image[0, 0])),
    mesh=mesh,
    axes=axes,
  )
  return d_image, d_text, jax.lax.psum(d_scale, axes)
