"""The sigmoid loss on a ring of devices; never holds the n x n matrix.

Each device keeps its images. The texts travel once around the ring, together
with the gradient that they collect on the way, so value and all gradients come
out of one pass and nothing is kept for a backward pass but the gradients
themselves, which are as large as the embeddings of one device.

Shape letters: n examples of the whole batch, b of one device, c of one tile,
D embedding width.
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


def ring_sigmoid_loss(
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
  """Returns `sigmoid_loss`, from embeddings that are split over `axes`.

  arXiv:2303.15343, section 3.3 ("efficient chunked implementation"). Memory for
  logits is b x b at once, or chunk_size x b, whatever the number of devices.

  Args:
    image: [n, D] float, normalised, the first dimension split over `axes`.
    text: [n, D] float, normalised, split alike; row i belongs to image i.
    logit_scale: () the log of the multiplier.
    logit_bias: ().
    mesh: the devices.
    axes: mesh axes that share the batch; over others everything is replicated.
    chunk_size: images whose logits a device computes at once; must divide b.
      None: all b.
    dtype: of the products' factors and of the travelling texts. "bfloat16"
      halves the bytes of the texts and needs a sixth of the matrix units' time;
      sums and the travelling gradient stay float32.
    ids: [n] or [n, K, W] integers, split alike; they travel with the texts. See
      the dense loss; None: no pair is a duplicate, and nothing is computed.
    duplicates: "ignore" or "positive".
    statistics: return (loss, `LogitStatistics`).

  Returns:
    () float32, the mean over images of the sum over texts.

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
    "statistics": statistics,
  }
  split = P(axes)
  seen = (P(), P(), split, None if ids is None else P())
  sums = (P(), seen if statistics else None)
  gradients = (split, split, P(), P())

  def on_mesh(gradient: bool, out_specs):
    # Built per call: a shard_map at module scope would pin its first mesh.
    return jax.shard_map(
      functools.partial(_ring, gradients=gradient, **options),
      mesh=mesh,
      in_specs=(*gradients, split),
      out_specs=out_specs,
    )

  value, seen = mean_with_gradients(
    on_mesh(False, sums),
    on_mesh(True, (*sums, gradients)),
    (image, text, logit_scale, logit_bias),
    ids,
    n,
  )
  if not statistics:
    return value
  return value, from_sums(n, *seen, duplicates=duplicates)


def _ring(
  image, text, scale, bias, ids, *, mesh, axes, gradients, statistics, **options
):
  """Sums over all pairs; sees the (bD, bD) and ids bKW of one device.

  Returns:
    -log p, (sum of the positives, sum of the negatives, b hardest negatives,
    number of duplicates or None) or None, and (d image, d text, d logit_scale,
    d logit_bias) if asked for.
  """
  block = functools.partial(
    _block, logit_scale=scale, logit_bias=bias, gradients=gradients, **options
  )

  def visit(blocks, d_text, sums, own, start):
    text, text_ids = blocks
    sums, added = block(
      image, text, sums, ids=(ids, text_ids), own=own, first=start
    )
    return d_text + added if gradients else None, sums

  zero = full_like(image[0, 0])
  sums = {"nll": zero}
  if statistics:
    lowest = full_like(image[:, 0], -jnp.inf)
    sums |= {"positives": zero, "negatives": zero, "hardest": lowest}
    if ids is not None:
      sums["duplicates"] = zero
  if gradients:
    sums |= {"d_scale": zero, "d_bias": zero, "d_image": full_like(image)}
  d_text, sums = ring_scan(
    visit,
    blocks=(as_factor(text, options["dtype"]), ids),
    block_sums=full_like(text) if gradients else None,
    sums=sums,
    mesh=mesh,
    axes=axes,
  )
  rows = {k: sums.pop(k, None) for k in ("hardest", "d_image")}
  sums = jax.lax.psum(sums, axes)
  seen = None
  if statistics:
    seen = sums["positives"], sums["negatives"], rows["hardest"]
    seen = *seen, sums.get("duplicates")
  if not gradients:
    return sums["nll"], seen
  scalars = sums["d_scale"], sums["d_bias"]
  return sums["nll"], seen, (rows["d_image"], d_text, *scalars)


def _block(
  image,
  text,
  sums,
  *,
  ids,
  own,
  first,
  logit_scale,
  logit_bias,
  chunk_size,
  dtype,
  duplicates,
  gradients,
):
  """Adds one block of pairs to `sums`, tile by tile; (bD, bD) -> (sums, bD).

  Args:
    image: bD.
    text: bD.
    sums: what `_ring` sums; of "d_image" bD and "hardest" b each tile has its
      rows.
    ids: those of the images, bKW, and of the texts, bKW; (None, None).
    own: whether image i and text i - first match.
    first: the row that text 0 has in its device's block.
    logit_scale: ().
    logit_bias: ().
    chunk_size: c, rows of a tile.
    dtype: of the products' factors.
    duplicates: what they are.
    gradients: compute them, or -log p alone.

  Returns:
    The sums, and what the block adds to d text.
  """
  b = len(image)
  scale = jnp.exp(logit_scale)
  cut = functools.partial(rows_from, count=chunk_size)

  def tile(carry, start):
    totals, d_text = carry
    added = {}
    rows = cut(image, start)  # cD
    scaled_dots = scale * product("iD,jD->ij", rows, text, dtype)  # cb
    logits = scaled_dots + logit_bias
    matching = (start + jnp.arange(chunk_size))[:, None] == (
      first + jnp.arange(len(text))[None]
    )
    matching &= own
    pairs = classify_pairs(matching, cut(ids[0], start), ids[1], duplicates)
    signs = jnp.where(pairs.positive, 1.0, -1.0)
    # The sign stays inside: see `sigmoid_loss`.
    added["nll"] = -pairs.masked(jax.nn.log_sigmoid(signs * logits)).sum()
    of_rows = {}
    if "hardest" in sums:
      added["positives"] = jnp.where(pairs.positive, logits, 0.0).sum()
      added["negatives"] = jnp.where(pairs.known, 0.0, logits).sum()
      of_rows["hardest"] = jnp.where(pairs.known, -jnp.inf, logits).max(axis=1)
    if "duplicates" in sums:
      added["duplicates"] = count(pairs.duplicate)
    if gradients:
      d_logits = pairs.masked(-signs * jax.nn.sigmoid(-signs * logits))
      added["d_scale"] = (d_logits * scaled_dots).sum()
      added["d_bias"] = d_logits.sum()
      d_logits *= scale
      d_text += product("ij,iD->jD", d_logits, rows, dtype)
      of_rows["d_image"] = product("ij,jD->iD", d_logits, text, dtype)
    totals = {k: totals[k] + value for k, value in added.items()}
    return (totals, d_text), of_rows

  d_text = full_like(text) if gradients else None
  totals = {k: v for k, v in sums.items() if k not in ("hardest", "d_image")}
  starts = jnp.arange(0, b, chunk_size)
  (totals, d_text), of_rows = jax.lax.scan(tile, (totals, d_text), starts)
  of_rows = {k: x.reshape(sums[k].shape) for k, x in of_rows.items()}
  if "hardest" in of_rows:
    totals["hardest"] = jnp.maximum(sums["hardest"], of_rows["hardest"])
  if gradients:
    totals["d_image"] = sums["d_image"] + of_rows["d_image"]
  return totals, d_text
