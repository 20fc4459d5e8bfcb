"""The optimizer: which rule moves which parameter, and by how much."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_siglip.errors import UserError
from big_siglip.late_start import counted_from
from big_siglip.parameter_rules import frozen_mask, match_rules
from big_siglip.schedules import learning_rate_schedule
from big_siglip.sharding import path_string
from big_siglip.treatments import (
  rate_multipliers,
  stop_blocks,
  weight_decays,
)

_FACTORED = 32  # Entries of an axis, at least, over which Adafactor factors.


def make_optimizer(
  config: Any,
  params: Any,
  *,
  total_steps: int,
  began: Mapping[str, int] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns the optimizer and its learning rate as a function of the step.

  At step t a parameter p moves by

    -s(t) * (m * learning_rate * direction + w * weight_decay * p),

  where s(t) is the schedule as a fraction of its peak, `direction` is what
  Adam, Adafactor or Lion make of the clipped gradients, and m and w are the
  multipliers of `config.rules` (1 without a rule).

  Weight decay has the meaning of the SigLIP papers (arXiv:2303.15343 and
  2502.14786, from big_vision): it follows the schedule but not the learning
  rate, neither its peak nor its multiplier. So `learning_rate=1e-3,
  weight_decay=1e-4` is `optax.adamw(1e-3, weight_decay=0.1)`. It acts on
  kernels alone, that is, on parameters whose path ends in "kernel": not on
  biases, norms, embeddings, the probe, `logit_scale` or `logit_bias`.

  The state holds trees with the paths of `params` (`.../mu/image/head/kernel`);
  a frozen parameter is an `optax.MaskedNode` there, without any array.

  Args:
    config: the section `config.optimizer`: name ("adamw", "adafactor" or
      "lion"), learning_rate, schedule, warmup_steps, cooldown_steps, timescale,
      schedule_steps, stretch_from, stretch, b1, b2, mu_dtype (of the first
      moment: "float32" or "bfloat16"), weight_decay, clip_norm (0: no clipping)
      and rules (see `match_rules`).
    params: the parameters, or their `jax.ShapeDtypeStruct`s; only the tree is
      looked at.
    total_steps: steps of the run; where schedule_steps is None, the schedule
      ends with it.
    began: of a later stage: parameters that were fresh then; see
      `late_start.counted_from`. Schedule and decay are those of all others.

  Returns:
    (transformation, schedule). The transformation's updates are ready for
    `optax.apply_updates`; those of frozen parameters are zeros.

  Raises:
    UserError: naming every mistake in the schedule's fields or, if there is
      none, in the rules; or the unknown name.
  """
  schedule = learning_rate_schedule(
    name=config.schedule,
    learning_rate=config.learning_rate,
    total_steps=config.schedule_steps or total_steps,
    warmup_steps=config.warmup_steps,
    cooldown_steps=config.cooldown_steps,
    timescale=config.timescale,
    stretch_from=config.stretch_from,
    stretch=config.stretch,
  )
  treatments = match_rules(params, config.rules)
  frozen = frozen_mask(params, config.rules)
  if all(map(np.all, jax.tree.leaves(frozen))):
    raise UserError("config.optimizer.rules: freeze every parameter")
  stop = stop_blocks(params, treatments)
  clip = optax.identity()
  if config.clip_norm:
    clip = clip_by_global_norm(config.clip_norm)
  # The learning rate is applied last: divide by its peak, so that it leaves the
  # decay only the schedule's shape.
  decay = config.weight_decay / config.learning_rate
  train = optax.chain(
    *stop,
    clip,
    counted_from(_direction(config), began or {}),
    *rate_multipliers(params, treatments),
    *weight_decays(params, treatments, decay),
    optax.scale_by_learning_rate(schedule),
    *stop,
  )
  labels = jax.tree.map(lambda f: "freeze" if np.all(f) else "train", frozen)
  # The trained part never sees a frozen leaf: neither clipping nor state do.
  return optax.partition(
    {"train": train, "freeze": optax.set_to_zero()}, labels
  ), schedule


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Returns gradients scaled so that all together have at most this norm.

  `optax.clip_by_global_norm` up to rounding. One multiplication by a scalar is
  merged into what follows, where optax's division and choice for every element
  are kept in memory: as much as the parameters, read and written once more.
  """

  def update(grads, state, params=None):
    del params
    scale = max_norm / jnp.maximum(optax.tree.norm(grads), max_norm)
    return jax.tree.map(lambda grad: grad * scale, grads), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def scale_by_adafactor(
  *, b1: float, b2: float, mu_dtype: jax.typing.DTypeLike
) -> optax.GradientTransformation:
  """Returns Adafactor as in "Scaling Vision Transformers" (section 3.4).

  arXiv:2106.04560, with the values of big_vision. Divides by the root of a
  second moment whose decay at step t = 1, 2, ... is min(b2, 1 - t**-0.8); it
  is kept as row and column means over the two largest axes where both have at
  least 32 entries, in full elsewhere. Stacked blocks (`config.model.scan`) are
  treated as if each stood alone; big_vision's scan factors the norms and biases
  of 32 and more blocks over these. Then a momentum of decay b1, without bias
  correction. Unlike the original Adafactor (arXiv:1804.04235) it neither clips
  the update's root mean square nor scales by the parameter's.

  The momentum's decay takes place in `mu_dtype`; in bfloat16 a b1 of 0.9 is
  0.8984.

  Args:
    b1: decay of the momentum.
    b2: the largest decay of the second moment.
    mu_dtype: in which the momentum is stored; bfloat16 in the paper.
  """

  def capped_decay(step: jax.Array, exponent: float) -> jax.Array:
    return jnp.minimum(b2, 1.0 - (step + 1.0) ** -exponent)

  return optax.chain(
    _block_by_block(
      optax.scale_by_factored_rms(
        decay_rate=0.8,
        min_dim_size_to_factor=_FACTORED,
        decay_rate_fn=capped_decay,
      )
    ),
    optax.ema(b1, debias=False, accumulator_dtype=mu_dtype),
  )


def _block_by_block(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns `inner`, to which no axis of stacked blocks is one to factor."""

  def view(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, x: x.reshape(_viewed(path_string(path), x.shape)), tree
    )

  def init(params: Any) -> Any:
    return inner.init(view(params))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    viewed, state = inner.update(view(updates), state, view(params))
    like = jax.tree.map(
      lambda new, old: new.reshape(old.shape), viewed, updates
    )
    return like, state

  return optax.GradientTransformation(init, update)


def _viewed(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape in which factoring takes a block's own axes.

  Mostly that is the shape itself. What is not factored in one block becomes a
  vector, and a depth that would be among the two largest axes is split.

  Raises:
    UserError: there are more blocks than numbers along an axis to factor, and
      their number has no divisors.
  """
  if "/blocks/" not in path:
    return shape
  depth, *own = shape
  if _factored_axes(tuple(own)) is None:
    return (math.prod(shape),) if _factored_axes(shape) else shape
  for divisor in range(1, depth + 1):
    if depth % divisor == 0:
      split = (*((divisor,) if divisor > 1 else ()), depth // divisor, *own)
      if min(_factored_axes(split) or ()) >= len(split) - len(own):
        return split
  raise UserError(
    f"config.optimizer.name='adafactor': {path} has {depth} stacked blocks of "
    f"shape {own}, which cannot be factored; set config.model.scan=False"
  )


def _factored_axes(shape: tuple[int, ...]) -> tuple[int, ...] | None:
  """Returns the two axes that `optax.scale_by_factored_rms` takes, or None."""
  largest = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
  small = len(shape) < 2 or shape[largest[0]] < _FACTORED
  return None if small else tuple(largest)


def _direction(config: Any) -> optax.GradientTransformation:
  """Returns gradients -> direction of the step, at learning rate 1."""
  moments = dict(b1=config.b1, b2=config.b2, mu_dtype=config.mu_dtype)
  if config.name == "adamw":
    return optax.scale_by_adam(**moments)
  if config.name == "adafactor":
    return scale_by_adafactor(**moments)
  if config.name == "lion":
    return optax.scale_by_lion(**moments)
  raise UserError(
    f"config.optimizer.name={config.name!r}: must be one of adamw, adafactor, "
    "lion"
  )
