"""Batches larger than the activations of which fit, exactly.

A contrastive loss does not split into losses of slices, so that accumulating
gradients, as for other losses, would train with smaller batches. But the loss
needs the embeddings alone: they are computed in slices whose activations are
dropped, the loss gives its gradient at all embeddings of the batch, and every
slice is computed again and taken back from there (GradCache, arXiv:2101.06983).

Shape letters: B examples of the whole batch, k slices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from big_siglip.sharding import Slices

Embed = Callable[..., tuple[jax.Array, ...]]


def value_and_grad(
  embed: Embed,
  loss_fn: Callable[..., tuple[jax.Array, Any]],
  params: Any,
  image: jax.Array,
  text: jax.Array,
  slices: Slices | None,
) -> tuple[tuple[jax.Array, Any], Any]:
  """Returns ((loss, statistics), gradient) of a whole batch.

  With and without slices equal to float32 rounding, if `embed` has no
  randomness.

  Args:
    embed: (params, images, texts) -> (image embeddings, text embeddings,
      logit_scale, logit_bias); with None for images and texts it computes the
      last two alone.
    loss_fn: what `embed` returns -> (() loss, statistics).
    params: a tree.
    image: [B, ...].
    text: [B, ...].
    slices: None embeds all B at once.
  """
  if slices is None:

    def loss_of(params):
      return loss_fn(*embed(params, image, text))

    return jax.value_and_grad(loss_of, has_aux=True)(params)

  def towers(params, images, texts):
    return embed(params, images, texts)[:2]

  pairs = slices.cut(image), slices.cut(text)
  embedded = jax.lax.map(lambda pair: towers(params, *pair), pairs)
  embedded = [slices.join(x) for x in embedded]
  scalars, scalars_vjp = jax.vjp(lambda p: embed(p, None, None)[2:], params)
  result, d_all = jax.value_and_grad(loss_fn, (0, 1, 2, 3), has_aux=True)(
    *embedded, *scalars
  )
  d_embedded = [slices.cut(d) for d in d_all[:2]]

  def add(gradient, part):
    pair, d_pair = part
    _, vjp = jax.vjp(lambda p: towers(p, *pair), params)
    return jax.tree.map(jnp.add, gradient, *vjp(tuple(d_pair))), None

  # Scale and bias stand outside the slices: their gradient counts once.
  (gradient,) = scalars_vjp(d_all[2:])
  gradient, _ = jax.lax.scan(add, gradient, (pairs, d_embedded))
  return result, gradient
