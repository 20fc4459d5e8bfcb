"""Batches larger than the activations of which fit, exactly.

A contrastive loss does not split into losses of slices, so that accumulating
gradients, as for other losses, would train with smaller batches. But the loss
needs the embeddings alone: they are computed in slices whose activations are
dropped, the loss gives its gradient at all embeddings of the batch, and every
slice is computed again and taken back from there (GradCache, arXiv:2101.06983).
What belongs to single examples, such as a caption's loss, rides in the second
pass: the first asks for embeddings alone, and the compiler leaves out the rest.

Shape letters: B examples of the whole batch, b of one slice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from big_siglip.sharding import Slices


def value_and_grad(
  forward: Callable[[Any, Any], tuple[Any, tuple[jax.Array, Any]]],
  pairs: Callable[[Any, Any, Any], tuple[jax.Array, Any]],
  params: Any,
  batch: Any,
  slices: Slices | None,
) -> tuple[tuple[jax.Array, tuple[Any, Any]], Any]:
  """Returns ((loss, (metrics, observed)), gradient) of a whole batch.

  With and without slices equal to float32 rounding, if what `forward` draws
  depends on the rows of `batch` alone.

  Args:
    forward: (params, b rows of `batch`) -> (a tree of embeddings, [b, ...]
      each, (() their own loss, a tree of what they observed)). Own losses and
      what is observed are summed over the slices.
    pairs: (params, embeddings of all B, batch) -> (() loss, metrics).
    params: a tree.
    batch: a tree of arrays [B, ...].
    slices: None takes all B at once.
  """
  if slices is None:

    def loss_of(params):
      embeddings, (own, observed) = forward(params, batch)
      loss, metrics = pairs(params, embeddings, batch)
      return loss + own, (metrics, observed)

    return jax.value_and_grad(loss_of, has_aux=True)(params)

  parts = jax.tree.map(slices.cut, batch)
  embedded = jax.lax.map(lambda part: forward(params, part)[0], parts)
  embedded = jax.tree.map(slices.join, embedded)
  # The gradient of what stands outside the slices, such as a learned scale,
  # counts once: all of them start from it.
  (loss, metrics), (gradient, d_embedded) = jax.value_and_grad(
    pairs, (0, 1), has_aux=True
  )(params, embedded, batch)
  d_parts = jax.tree.map(slices.cut, d_embedded)

  def add(sums, cut):
    part, d_part = cut

    def of(params):
      embeddings, (own, observed) = forward(params, part)
      return (embeddings, own), observed

    (_, own), vjp, observed = jax.vjp(of, params, has_aux=True)
    d_params = vjp((d_part, jnp.ones_like(own)))
    return jax.tree.map(jnp.add, sums, (*d_params, own, observed)), None

  first = jax.tree.map(lambda x: x[0], parts)
  _, zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(lambda p, b: forward(p, b), params, first),
  )
  sums, _ = jax.lax.scan(add, (gradient, *zeros), (parts, d_parts))
  gradient, own, observed = sums
  return (loss + own, (metrics, observed)), gradient
