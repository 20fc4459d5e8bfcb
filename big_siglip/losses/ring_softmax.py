"""CLIP's softmax loss on a ring of devices; never holds the n x n matrix.

A softmax needs the sums of its rows and columns before it has a gradient, so
the texts travel twice: once for the log-sum-exps, once for the gradients.

Shape letters: n examples of the whole batch, b of one device, D embedding
width.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from big_siglip.losses.sigmoid import dot_products
from big_siglip.losses.travel import (
  full_like,
  product,
  rows_per_device,
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
) -> jax.Array:
  """Returns `softmax_loss`, from embeddings that are split over `axes`.

  Memory for logits is b x b at once, whatever the number of devices.

  Args:
    image: [n, D] float, normalised, the first dimension split over `axes`.
    text: [n, D] float, normalised, split alike; row i belongs to image i.
    logit_scale: () the log of the inverse temperature.
    logit_bias: () without effect: a softmax does not see a common shift.
    mesh: the devices.
    axes: mesh axes that share the batch; over others everything is replicated.

  Returns:
    () float32, the mean of both directions' cross entropies.

  Raises:
    UserError: the devices do not divide n.
  """
  del logit_bias
  n, axes = len(image), tuple(axes)
  rows_per_device(n, mesh, axes)
  split = P(axes)
  sums = jax.shard_map(
    functools.partial(_sums, axes=axes),
    mesh=mesh,
    in_specs=(split, split, P()),
    out_specs=(P(), split, split),
  )
  gradients = jax.shard_map(
    functools.partial(_gradients, axes=axes),
    mesh=mesh,
    in_specs=(split, split, P(), split, split),
    out_specs=(split, split, P()),
  )
  arguments = (image, text, logit_scale)
  dtypes = tuple(jnp.result_type(x) for x in arguments)

  @jax.custom_vjp
  def loss(*arguments):
    return sums(*arguments)[0] / (2 * n)

  def forward(*arguments):
    total, row_sums, column_sums = sums(*arguments)
    return total / (2 * n), gradients(*arguments, row_sums, column_sums)

  def backward(gradients, cotangent):
    scaled = jax.tree.map(lambda g: cotangent / (2 * n) * g, gradients)
    return jax.tree.map(lambda g, dtype: g.astype(dtype), scaled, dtypes)

  loss.defvjp(forward, backward)
  return loss(*arguments)


def _sums(image, text, logit_scale, *, axes):
  """Sums both cross entropies; (bD, bD, ()) -> ((), b, b).

  Returns:
    The sum over both directions, and the log-sum-exp of the logits over each
    image's texts and over each text's images.
  """
  scale = jnp.exp(logit_scale)

  def visit(text, columns, rows, own):
    del own
    logits = scale * dot_products(image, text)
    columns = jnp.logaddexp(columns, jax.nn.logsumexp(logits, axis=0))
    return columns, jnp.logaddexp(rows, jax.nn.logsumexp(logits, axis=1))

  nothing = full_like(image[:, 0], -jnp.inf)
  columns, rows = travel_ring(
    visit, ahead=text, behind=nothing, staying=nothing, axes=axes
  )
  matching = scale * product("iD,iD->i", image, text)
  return (
    jax.lax.psum((rows + columns - 2 * matching).sum(), axes),
    rows,
    columns,
  )


def _gradients(image, text, logit_scale, rows, columns, *, axes):
  """Returns what `_sums` adds up, differentiated; -> (bD, bD, ())."""
  b = len(image)
  scale = jnp.exp(logit_scale)

  def visit(ahead, d_text, staying, own):
    text, columns = ahead
    d_image, d_scale = staying
    logits = scale * dot_products(image, text)
    d_logits = jnp.exp(logits - rows[:, None]) + jnp.exp(logits - columns[None])
    d_logits -= jnp.where(own, 2.0, 0.0) * jnp.eye(b)
    d_scale += (d_logits * logits).sum()
    d_logits *= scale
    d_image += product("ij,jD->iD", d_logits, text)
    d_text += product("ij,iD->jD", d_logits, image)
    return d_text, (d_image, d_scale)

  zero = full_like(image[0, 0])
  d_text, (d_image, d_scale) = travel_ring(
    visit,
    ahead=(text, columns),
    behind=full_like(text),
    staying=(full_like(image), zero),
    axes=axes,
  )
  return d_image, d_text, jax.lax.psum(d_scale, axes)
