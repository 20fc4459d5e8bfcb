"""What rules about parameters do to the optimizer's updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_siglip.parameter_rules import (
  by_block,
  map_paths,
  Treatment,
  Treatments,
)
from big_siglip.sharding import path_string


def rate_multipliers(
  params: Any, treatments: Treatments
) -> list[optax.GradientTransformation]:
  """Returns the scaling of directions by each multiplier but 1."""
  uniform = _uniform(treatments)

  def scale(multiplier: float) -> optax.GradientTransformation:
    mask = map_paths(
      lambda path: (
        path in uniform and uniform[path].learning_rate == multiplier
      ),
      params,
    )
    return optax.masked(optax.scale(multiplier), mask)

  multipliers = {t.learning_rate for t in uniform.values()} - {1.0}
  return [
    *(scale(multiplier) for multiplier in sorted(multipliers)),
    *_each_block(
      params,
      treatments,
      "learning_rate",
      lambda update, param, rates: update * np.float32(rates),
    ),
  ]


def weight_decays(
  params: Any, treatments: Treatments, weight_decay: float
) -> list[optax.GradientTransformation]:
  """Returns the addition of decayed kernels for each multiplier but 0."""
  uniform = _uniform(treatments)

  def add(multiplier: float) -> optax.GradientTransformation:
    mask = map_paths(
      lambda path: (
        path.split("/")[-1] == "kernel"
        and path in uniform
        and uniform[path].weight_decay == multiplier
      ),
      params,
    )
    return optax.add_decayed_weights(weight_decay * multiplier, mask)

  kernels = {
    path: own
    for path, own in treatments.items()
    if path.split("/")[-1] == "kernel"
  }
  multipliers = {t.weight_decay for t in uniform.values()} - {0.0}
  return [
    *(add(multiplier) for multiplier in sorted(multipliers)),
    *_each_block(
      params,
      kernels,
      "weight_decay",
      lambda update, param, decays: (
        update + np.float32(weight_decay * decays) * param
      ),
    ),
  ]


def stop_blocks(
  params: Any, treatments: Treatments
) -> list[optax.GradientTransformation]:
  """Returns the zeroing of frozen blocks of parameters that others train in.

  Their moments stay zero. They have no say in the clipping, if it comes first.
  """
  return _each_block(
    params,
    treatments,
    "freeze",
    lambda update, param, frozen: jnp.where(frozen, 0, update),
  )


def _each_block(
  params: Any,
  treatments: Treatments,
  field: str,
  change: Callable[[jax.Array, jax.Array, np.ndarray], jax.Array],
) -> list[optax.GradientTransformation]:
  """Returns what changes the updates of blocks that are treated differently.

  Args:
    params: the parameters.
    treatments: of those that are looked at.
    field: of `Treatment`, that the change follows.
    change: (update, parameter, the field of each block) -> update.

  Returns:
    One transformation, or none where all blocks of each parameter are alike.
  """
  values = {}
  for key, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = path_string(key)
    own = (
      by_block(treatments, field, path, leaf) if path in treatments else None
    )
    if own is not None:
      values[path] = own
  if not values:
    return []

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    def one(key: Any, update: jax.Array, param: jax.Array) -> jax.Array:
      own = values.get(path_string(key))
      return update if own is None else change(update, param, own)

    changed = jax.tree_util.tree_map_with_path(one, updates, params)
    return changed, state

  return [optax.GradientTransformation(optax.init_empty_state, update)]


def _uniform(treatments: Treatments) -> dict[str, Treatment]:
  """Returns those of parameters that are treated as a whole."""
  return {p: t for p, t in treatments.items() if isinstance(t, Treatment)}
