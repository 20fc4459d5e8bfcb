"""A moving average of the parameters, as evaluated and exported weights."""

from typing import Any

import jax
import jax.numpy as jnp


def start(params: Any) -> Any:
  """Returns the average before the first step: copies of the parameters.

  As timm and big_vision start it, so that there is no bias to correct. Copies,
  since a step donates both trees.
  """
  return jax.tree.map(jnp.copy, params)


def update(average: Any, params: Any, decay: float) -> Any:
  """Returns decay * average + (1 - decay) * params.

  In a form that leaves an average that equals its parameter as it is, bit for
  bit: a frozen tower stays the one that it was loaded as.

  Args:
    average: the average before a step.
    params: the parameters after it.
    decay: in (0, 1); the average is over some 1 / (1 - decay) steps.
  """
  return jax.tree.map(
    lambda old, new: old + (1 - decay) * (new - old), average, params
  )
