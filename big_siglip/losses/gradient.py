"""A mean over a ring whose gradients come out of its own passes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def mean_with_gradients(
  total: Callable[..., tuple[jax.Array, Any]],
  total_and_gradients: Callable[..., tuple[jax.Array, Any, tuple]],
  arguments: tuple[jax.Array, ...],
  ids: jax.Array | None,
  divisor: float,
) -> tuple[jax.Array, Any]:
  """Returns total / divisor and what was seen, which has no gradient.

  Args:
    total: (*arguments, ids) -> (() total, seen).
    total_and_gradients: (*arguments, ids) -> (() total, seen, gradients of the
      total by the arguments, float32).
    arguments: what may be differentiated.
    ids: integers, or None.
    divisor: by which the total, and so each gradient, is divided.
  """
  dtypes = tuple(jnp.result_type(x) for x in arguments)

  @jax.custom_vjp
  def mean(*arguments_and_ids):
    value, seen = total(*arguments_and_ids)
    return value / divisor, seen

  def forward(*arguments_and_ids):
    value, seen, gradients = total_and_gradients(*arguments_and_ids)
    return (value / divisor, seen), gradients

  def backward(gradients, cotangents):
    factor = cotangents[0] / divisor
    scaled = jax.tree.map(
      lambda g, dtype: (factor * g).astype(dtype), gradients, dtypes
    )
    return *scaled, None  # Ids have none.

  mean.defvjp(forward, backward)
  return mean(*arguments, ids)
