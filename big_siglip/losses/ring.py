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

from big_siglip.errors import UserError
from big_siglip.losses.sigmoid import dot_products
from big_siglip.losses.travel import (
  full_like,
  product,
  rows_per_device,
  travel_ring,
)

# (loss, d image, d text, d logit_scale, d logit_bias).
LossAndGradients = tuple[jax.Array, ...]


def ring_sigmoid_loss(
  image: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array,
  *,
  mesh: Mesh,
  axes: Sequence[str],
  chunk_size: int | None = None,
) -> jax.Array:
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

  Returns:
    () float32, the mean over images of the sum over texts.

  Raises:
    UserError: the devices do not divide n, or chunk_size does not divide b.
  """
  n, axes = len(image), tuple(axes)
  rows = rows_per_device(n, mesh, axes)
  chunk_size = rows if chunk_size is None else chunk_size
  if chunk_size < 1 or rows % chunk_size:
    raise UserError(
      f"chunk_size={chunk_size}: must divide the {rows} examples of a device"
    )
  # Built per call: a shard_map at module scope would pin its first mesh.
  ring = functools.partial(_ring, axes=axes, chunk_size=chunk_size)
  split = P(axes)
  in_specs = (split, split, P(), P())
  value = jax.shard_map(
    functools.partial(ring, gradients=False),
    mesh=mesh,
    in_specs=in_specs,
    out_specs=P(),
  )
  value_and_gradients = jax.shard_map(
    functools.partial(ring, gradients=True),
    mesh=mesh,
    in_specs=in_specs,
    out_specs=(P(), (split, split, P(), P())),
  )

  arguments = (image, text, logit_scale, logit_bias)
  dtypes = tuple(jnp.result_type(x) for x in arguments)

  @jax.custom_vjp
  def loss(*arguments):
    return value(*arguments) / n

  def forward(*arguments):
    total, gradients = value_and_gradients(*arguments)
    return total / n, gradients

  def backward(gradients, cotangent):
    scaled = jax.tree.map(lambda g: (cotangent / n) * g, gradients)
    return jax.tree.map(lambda g, dtype: g.astype(dtype), scaled, dtypes)

  loss.defvjp(forward, backward)
  return loss(*arguments)


def _ring(image, text, logit_scale, logit_bias, *, axes, chunk_size, gradients):
  """Sums over all pairs; sees the (bD, bD) of one device."""
  block = functools.partial(
    _block,
    logit_scale=logit_scale,
    logit_bias=logit_bias,
    chunk_size=chunk_size,
    gradients=gradients,
  )

  def visit(text, d_text, sums, own):
    sums, added = block(image, text, sums, own=own)
    return d_text + added if gradients else None, sums

  zeros = (full_like(image[0, 0]),) * 3
  d_image = d_text = full_like(image) if gradients else None
  d_text, sums = travel_ring(
    visit, ahead=text, behind=d_text, staying=(*zeros, d_image), axes=axes
  )
  nll, d_scale, d_bias, d_image = sums
  nll = jax.lax.psum(nll, axes)
  if not gradients:
    return nll
  d_scale, d_bias = jax.lax.psum((d_scale, d_bias), axes)
  return nll, (d_image, d_text, d_scale, d_bias)


def _block(
  image, text, sums, *, own, logit_scale, logit_bias, chunk_size, gradients
):
  """Adds one block of pairs to `sums`, tile by tile; (bD, bD) -> (sums, bD).

  Args:
    image: bD.
    text: bD.
    sums: (-log p, d logit_scale, d logit_bias, d image) so far.
    own: whether image i and text i match.
    logit_scale: ().
    logit_bias: ().
    chunk_size: c, rows of a tile.
    gradients: compute them, or -log p alone.

  Returns:
    The sums, and what the block adds to d text.
  """
  b, width = image.shape
  scale = jnp.exp(logit_scale)
  nll, d_scale, d_bias, d_image = sums

  def tile(carry, start):
    nll, d_scale, d_bias, d_text = carry
    rows = jax.lax.dynamic_slice_in_dim(image, start, chunk_size)  # cD
    scaled_dots = scale * dot_products(rows, text)  # cb
    matching = (start + jnp.arange(chunk_size))[:, None] == jnp.arange(b)[None]
    signs = jnp.where(own & matching, 1.0, -1.0)
    signed = signs * (scaled_dots + logit_bias)
    # The sign stays inside: see `sigmoid_loss`.
    nll -= jax.nn.log_sigmoid(signed).sum()
    if not gradients:
      return (nll, d_scale, d_bias, d_text), None
    d_logits = -signs * jax.nn.sigmoid(-signed)
    d_scale += (d_logits * scaled_dots).sum()
    d_bias += d_logits.sum()
    d_logits *= scale
    d_text += product("ij,iD->jD", d_logits, rows)
    d_rows = product("ij,jD->iD", d_logits, text)
    return (nll, d_scale, d_bias, d_text), d_rows

  d_text = full_like(text) if gradients else None
  carry = (nll, d_scale, d_bias, d_text)
  starts = jnp.arange(0, b, chunk_size)
  (nll, d_scale, d_bias, d_text), d_rows = jax.lax.scan(tile, carry, starts)
  if gradients:
    d_image += d_rows.reshape(b, width)
  return (nll, d_scale, d_bias, d_image), d_text
