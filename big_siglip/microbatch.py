"""Batches larger than the activations of which fit, exactly.

A contrastive loss does not split into losses of slices, so that accumulating
gradients, as for other losses, would train with smaller batches. But the loss
needs the embeddings alone: they are computed in slices whose activations are
dropped, the loss gives its gradient at all embeddings of the batch, and every
slice is computed again and taken back from there (GradCache, arXiv:2101.06983).
What belongs to single examples, such as a caption's loss, rides in the second
pass: the first asks for embeddings alone, and the compiler leaves out the rest.
What looks at views of its own besides is taken back slice by slice at once, so
that nothing of it has to be computed again: `at_once`.

Shape letters: B examples of the whole batch, b of one slice.
"""

from collections.abc import Callable, Sequence
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
    return _sum(sums, (*d_params, own, observed)), None

  first = jax.tree.map(lambda x: x[0], parts)
  _, zeros = _zeros(forward, params, first)
  sums, _ = jax.lax.scan(add, (gradient, *zeros), (parts, d_parts))
  gradient, own, observed = sums
  return (loss + own, (metrics, observed)), gradient


def at_once(
  losses: Sequence[Callable[[Any, Any, Any, Any], tuple[jax.Array, Any]]],
  prepare: Callable[[Any, Any, Any], Any],
  slices: Slices | None,
) -> Callable[[Any, Any, Any, Any], tuple[jax.Array, tuple[Any, ...]]]:
  """Returns a function that has its gradient as soon as its value.

  For losses that are sums over examples and need no other ones. Of each slice
  each loss is taken back before the next one is looked at. So activations of
  one of them at a time exist, which can all be kept, and of the whole the
  gradient alone.

  Args:
    losses: (parameters, a part of the inputs, others, what was prepared) ->
      (() loss, a tree of what it observed) each, both sums over the part.
    prepare: (parameters, others, a part of a batch) -> what the losses look at,
      a tree of arrays without a gradient.
    slices: None takes the whole batch as one.

  Returns:
    (parameters, inputs, others, batch) -> (sum of the losses, what each
    observed), sums over the batch. Inputs and batch are trees of arrays [B,
    ...]. There is a gradient to parameters and inputs, and no other.
  """
  functions = [
    jax.value_and_grad(loss, (0, 1), has_aux=True) for loss in losses
  ]

  def of_part(params, inputs, others, part) -> Any:
    given = jax.lax.stop_gradient(prepare(params, others, part))
    total, observed, gradients = jnp.zeros(()), [], None
    for function in functions:
      if gradients is not None:
        given, gradients = jax.lax.optimization_barrier((given, gradients))
      (loss, found), own = function(params, inputs, others, given)
      total += loss
      observed.append(found)
      gradients = own if gradients is None else _sum(gradients, own)
    return (total, tuple(observed)), gradients

  def forward(params, inputs, others, batch):
    if slices is None:
      return of_part(params, inputs, others, batch)
    parts = jax.tree.map(slices.cut, (inputs, batch))

    def of_slice(own, part):
      found, (gradient, d_own) = of_part(params, own, others, part)
      return (found, gradient), d_own

    def add(sums, cut):
      new, d_own = of_slice(*cut)
      return _sum(sums, new), d_own

    zeros, _ = _zeros(of_slice, *jax.tree.map(lambda x: x[0], parts))
    (found, gradient), d_inputs = jax.lax.scan(add, zeros, parts)
    return found, (gradient, jax.tree.map(slices.join, d_inputs))

  def backward(gradients, cotangents):
    factor, _ = cotangents
    scaled = jax.tree.map(lambda x: factor.astype(x.dtype) * x, gradients)
    return *scaled, None, None

  @jax.custom_vjp
  def run(params, inputs, others, batch):
    return forward(params, inputs, others, batch)[0]

  run.defvjp(forward, backward)
  return run


def _sum(a, b):
  return jax.tree.map(jnp.add, a, b)


def _zeros(function, *arguments) -> Any:
  """Returns zeros of the shapes that a function returns."""
  shapes = jax.eval_shape(function, *arguments)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
