"""One optimization step, as a pure function of state and batch.

Shape letters: B global batch, H image height, W width, L tokens.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from big_siglip import ema
from big_siglip.microbatch import value_and_grad
from big_siglip.objectives import total
from big_siglip.objectives.term import Batch, image_of, Look, Term
from big_siglip.sharding import Slices

Metrics = dict[str, jax.Array]  # Scalars.


@flax.struct.dataclass
class TrainState:
  """Everything a step reads and writes, checkpointed as one tree.

  Attributes:
    step: () int32, the number of steps taken so far.
    params: the parameters of the model and of the terms, float32.
    opt_state: what the optimizer keeps.
    carry: what goes from step to step without a gradient; None: nothing.
    ema: moving average of the parameters; None without `config.ema.decay`.
  """

  step: jax.Array
  params: Any
  opt_state: optax.OptState
  carry: Any = None
  ema: Any = None

  @property
  def weights(self) -> Any:
    """What is evaluated: the average where there is one, or the parameters."""
    return self.params if self.ema is None else self.ema


def init_params(
  rng: jax.Array, batch: Batch, *, model: Any, terms: Sequence[Term]
) -> Any:
  """Returns the parameters before the first step, of model and terms.

  Args:
    rng: where all randomness comes from.
    batch: example inputs.
    model: with `init` and `look`; see `big_siglip.models.SigLIP`.
    terms: all of them.
  """
  params = model.init(rng, image_of(batch), batch.get("text"))["params"]
  fresh = total.init_params(terms, rng, params, batch, model.look)
  return {**params, **fresh}


def init_state(
  rng: jax.Array,
  batch: Batch,
  *,
  model: Any,
  terms: Sequence[Term],
  optimizer: optax.GradientTransformation,
  average: bool = False,
) -> TrainState:
  """Returns the state before the first step; call it under `jax.jit`.

  Args:
    rng: a key.
    batch: example inputs.
    model: see `init_params`.
    terms: the same.
    optimizer: whose state is made.
    average: with a moving average of the parameters.
  """
  params = init_params(rng, batch, model=model, terms=terms)
  return state_of(params, terms=terms, optimizer=optimizer, average=average)


def state_of(
  params: Any,
  *,
  terms: Sequence[Term],
  optimizer: optax.GradientTransformation,
  average: bool = False,
) -> TrainState:
  """Returns the state before the first step, of parameters that there are.

  Args:
    params: of model and terms.
    terms: see `init_params`.
    optimizer: whose state is made.
    average: with a moving average of the parameters.
  """
  return TrainState(
    jnp.zeros((), jnp.int32),
    params,
    optimizer.init(params),
    carry=total.init_carry(terms, params),
    ema=ema.start(params) if average else None,
  )


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  look: Look,
  terms: Sequence[Term],
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  seed: int = 0,
  frozen: Any = None,
  slices: Slices | None = None,
  skip_nonfinite: bool = False,
  ema_decay: float | None = None,
) -> tuple[TrainState, Metrics]:
  """Looks at the batch, adds up the terms, and applies one update.

  Args:
    state: the state before the step.
    batch: "image" BHW3 uint8, or "patches" and "grid" of them, or
      "image_embedding" BE float32; "text" BL int32; and what else the terms
      look at.
    look: (parameters, batch) -> what the model sees of it.
    terms: the summands of the loss.
    optimizer: turns gradients into updates.
    schedule: step -> learning rate, for the metrics alone.
    seed: of what the terms draw.
    frozen: tree of bools like the parameters; True takes a parameter out of
      the backward pass. An array of bools stops some of its stacked blocks.
    slices: embed the batch in slices, so that activations of one at a time
      exist; see `big_siglip.microbatch`.
    skip_nonfinite: leave parameters, their average, optimizer state and carry
      as they were when loss or gradient are not finite.
    ema_decay: of the state's moving average, where it has one.

  Returns:
    The state after the step, and metrics: `param_norm` is of the parameters
    after the step, all others are of those before it.
  """
  forward = total.forward(
    terms,
    look,
    carry=state.carry,
    step=state.step,
    seed=seed,
    batch_size=len(batch["text"]),
  )
  pairs = total.pairs(terms, step=state.step)
  (loss, (metrics, observed)), grads = value_and_grad(
    lambda params, part: forward(_stopped(params, frozen), part),
    lambda params, *seen: pairs(_stopped(params, frozen), *seen),
    state.params,
    total.with_rows(terms, batch),
    slices,
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  carry = total.advance(terms, state.carry, params, observed)
  average = state.ema
  if average is not None:
    average = ema.update(average, params, ema_decay)
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  after = state.replace(
    params=params, opt_state=opt_state, carry=carry, ema=average
  )
  if skip_nonfinite:
    after = jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, state)
  metrics = {
    "loss": loss,
    "finite": finite,
    "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
    "grad_norm": grad_norm,
    # Of the new ones: asking for the old ones would keep a copy of them alive.
    "param_norm": optax.tree.norm(after.params),
    "update_norm": optax.tree.norm(updates),
    "logit_scale": jnp.exp(state.params["logit_scale"]),
    "logit_bias": state.params["logit_bias"],
    **metrics,
    **total.scalars(terms, observed),
  }
  return after.replace(step=state.step + 1), metrics


def _stopped(params: Any, frozen: Any) -> Any:
  """Returns parameters that stop the gradient where they are frozen."""
  if frozen is None:
    return params

  def stop(p: jax.Array, f: Any) -> jax.Array:
    stopped = jax.lax.stop_gradient(p)
    if isinstance(f, bool):
      return stopped if f else p
    return jnp.where(f, stopped, p)  # Some of the stacked blocks.

  return jax.tree.map(stop, params, frozen)
