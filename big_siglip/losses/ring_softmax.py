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

from big_siglip.losses.duplicates import check_ids, classify_pairs
from big_siglip.losses.gradient import mean_with_gradients
from big_siglip.losses.ring_scan import (
  as_factor,
  check_dtype,
  full_like,
  product,
  ring_scan,
  rows_from,
  tile_rows,
)
from big_siglip.losses.statistics import count, from_sums, LogitStatistics


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
  ids: jax.Array | None = None,
  duplicates: str = "ignore",
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
    ids: [n] or [n, K, W] integers, split alike; they travel with the texts. See
      the dense loss; None: no pair is a duplicate, and nothing is computed.
    duplicates: "ignore" or "positive".
    statistics: return (loss, `LogitStatistics`).

  Returns:
    () float32, the mean of both directions' cross entropies.

  Raises:
    UserError: the devices do not divide n, chunk_size does not divide b, or
      dtype, duplicates or the shape of ids is another.
  """
  check_dtype(dtype)
  n, axes = len(image), tuple(axes)
  ids = check_ids(ids, n, duplicates)
  options = {
    "mesh": mesh,
    "axes": axes,
    "chunk_size": tile_rows(n, mesh, axes, chunk_size),
    "dtype": dtype,
    "duplicates": duplicates,
  }
  split = P(axes)
  seen_specs = None
  if statistics:
    seen_specs = (P(), P(), split, None if ids is None else P())
  # How many positives a row has; always one, unless duplicates are some.
  several = split if ids is not None and duplicates == "positive" else None
  sums = jax.shard_map(
    functools.partial(_sums, statistics=statistics, **options),
    mesh=mesh,
    in_specs=(split, split, P(), split),
    out_specs=(P(), (split, split, several), seen_specs),
  )
  gradients = jax.shard_map(
    functools.partial(_gradients, **options),
    mesh=mesh,
    in_specs=(split, split, P(), split, (split, split, several)),
    out_specs=(split, split, P()),
  )

  def total(*arguments):
    value, _, seen = sums(*arguments)
    return value, seen

  def total_and_gradients(*arguments):
    value, of_examples, seen = sums(*arguments)
    return value, seen, gradients(*arguments, of_examples)

  arguments = (image, text, logit_scale)
  value, seen = mean_with_gradients(
    total, total_and_gradients, arguments, ids, 2 * n
  )
  if not statistics:
    return value
  shift = jax.lax.stop_gradient(logit_bias)
  return value, from_sums(n, *seen, duplicates=duplicates, shift=shift)


def _tile(
  image, text, scale, ids, *, start, first, own, chunk_size, dtype, duplicates
):
  """Returns a tile's images cD, its logits cb and what its `Pairs` are."""
  rows = rows_from(image, start, chunk_size)
  logits = scale * product("iD,jD->ij", rows, text, dtype)
  columns = first + jnp.arange(len(text))[None]
  matching = (start + jnp.arange(chunk_size))[:, None] == columns
  row_ids = rows_from(ids[0], start, chunk_size)
  return (
    rows,
    logits,
    classify_pairs(matching & own, row_ids, ids[1], duplicates),
  )


def _sums(image, text, logit_scale, ids, *, mesh, axes, statistics, **options):
  """Sums both cross entropies; (bD, bD, (), bKW) -> sums, see below.

  Returns:
    The sum over both directions; (the log-sum-exp of the logits over each
    image's texts, the same over each text's images, how many positives each has
    or None where that is one); and (sum of positives, sum of negatives, b
    hardest negatives, number of duplicates or None) or None.
  """
  b, scale = len(image), jnp.exp(logit_scale)
  starts = jnp.arange(0, b, options["chunk_size"])
  several = ids is not None and options["duplicates"] == "positive"

  def visit(blocks, columns, sums, own, first):
    text, text_ids = blocks

    def tile(carry, start):
      columns, totals = carry
      _, logits, pairs = _tile(
        *(image, text, scale, (ids, text_ids)),
        **dict(start=start, first=first, own=own, **options),
      )
      rivals = pairs.masked(logits, -jnp.inf)
      positives = jnp.where(pairs.positive, logits, 0.0)
      added = {"positives": positives.sum()}
      lse = jnp.logaddexp(columns["lse"], jax.nn.logsumexp(rivals, axis=0))
      columns = columns | {"lse": lse}
      of_rows = {"lse": jax.nn.logsumexp(rivals, axis=1)}
      if several:
        columns["positives"] += positives.sum(axis=0)
        of_rows["positives"] = positives.sum(axis=1)
        of_rows["count"] = jnp.where(pairs.positive, 1.0, 0.0).sum(axis=1)
      if statistics:
        added["negatives"] = jnp.where(pairs.known, 0.0, logits).sum()
        masked = jnp.where(pairs.known, -jnp.inf, logits)
        of_rows["hardest"] = masked.max(axis=1)
      if "duplicates" in totals:
        added["duplicates"] = count(pairs.duplicate)
      return (columns, {k: totals[k] + x for k, x in added.items()}), of_rows

    rows, totals = sums
    (columns, totals), of_rows = jax.lax.scan(tile, (columns, totals), starts)
    of_rows = {k: x.reshape(b) for k, x in of_rows.items()}
    return columns, ({k: _JOIN[k](rows[k], of_rows[k]) for k in rows}, totals)

  columns, rows, totals = _nothing_yet(image, ids, several, statistics)
  columns, (rows, totals) = ring_scan(
    visit,
    blocks=(as_factor(text, options["dtype"]), ids),
    block_sums=columns,
    sums=(rows, totals),
    mesh=mesh,
    axes=axes,
  )
  total = (rows["lse"] + columns["lse"]).sum()
  if several:
    total -= ((rows["positives"] + columns["positives"]) / rows["count"]).sum()
  else:
    total -= 2 * totals["positives"]
  total, totals = jax.lax.psum((total, totals), axes)
  seen = None
  if statistics:
    seen = totals["positives"], totals["negatives"], rows["hardest"]
    seen = *seen, totals.get("duplicates")
  return total, (rows["lse"], columns["lse"], rows.get("count")), seen


def _nothing_yet(image, ids, several, statistics):
  """Returns what `_sums` starts with for texts, for images, and for all."""
  zero, lowest = full_like(image[0, 0]), full_like(image[:, 0], -jnp.inf)
  columns, rows, totals = {"lse": lowest}, {"lse": lowest}, {"positives": zero}
  if several:
    zeros = full_like(image[:, 0])
    columns["positives"] = rows["positives"] = rows["count"] = zeros
  if statistics:
    rows["hardest"], totals["negatives"] = lowest, zero
    if ids is not None:
      totals["duplicates"] = zero
  return columns, rows, totals


# How what a row has seen so far joins what it sees next.
_JOIN = {
  "lse": jnp.logaddexp,
  "hardest": jnp.maximum,
  "positives": jnp.add,
  "count": jnp.add,
}


def _gradients(
  image, text, logit_scale, ids, of_examples, *, mesh, axes, **options
):
  """Returns what `_sums` adds up, differentiated; -> (bD, bD, ())."""
  b, scale, chunk = len(image), jnp.exp(logit_scale), options["chunk_size"]
  starts = jnp.arange(0, b, chunk)
  rows, columns, counts = of_examples

  def visit(blocks, d_text, sums, own, first):
    text, columns, text_ids, text_counts = blocks
    d_image, d_scale = sums

    def tile(carry, start):
      d_text, d_scale = carry
      images, logits, pairs = _tile(
        *(image, text, scale, (ids, text_ids)),
        **dict(start=start, first=first, own=own, **options),
      )
      d_logits = jnp.exp(logits - rows_from(rows, start, chunk)[:, None])
      d_logits += jnp.exp(logits - columns[None])
      wanted = 2.0
      if counts is not None:
        wanted = 1 / rows_from(counts, start, chunk)[:, None]
        wanted += 1 / text_counts[None]
      d_logits = pairs.masked(d_logits)
      d_logits -= jnp.where(pairs.positive, wanted, 0.0)
      d_scale += (d_logits * logits).sum()
      d_logits *= scale
      d_text += product("ij,iD->jD", d_logits, images, options["dtype"])
      return (d_text, d_scale), product(
        "ij,jD->iD", d_logits, text, options["dtype"]
      )

    (d_text, d_scale), added = jax.lax.scan(tile, (d_text, d_scale), starts)
    return d_text, (d_image + added.reshape(d_image.shape), d_scale)

  d_text, (d_image, d_scale) = ring_scan(
    visit,
    blocks=(as_factor(text, options["dtype"]), columns, ids, counts),
    block_sums=full_like(text),
    sums=(full_like(image), full_like(image[0, 0])),
    mesh=mesh,
    axes=axes,
  )
  return d_image, d_text, jax.lax.psum(d_scale, axes)
