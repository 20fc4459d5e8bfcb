"""One optimization step, as a pure function of state and batch.

Shape letters: B global batch, H image height, W width, L tokens.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from big_siglip.microbatch import value_and_grad
from big_siglip.sharding import Slices

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]  # Scalars.


@flax.struct.dataclass
class TrainState:
  """Everything a step reads and writes, checkpointed as one tree.

  Attributes:
    step: () int32, the number of steps taken so far.
    params: the model's parameters, float32.
    opt_state: what the optimizer keeps.
  """

  step: jax.Array
  params: Any
  opt_state: optax.OptState


def inputs(batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Returns what the towers see: images, or embeddings of them; and texts."""
  name = "image" if "image" in batch else "image_embedding"
  return batch[name], batch["text"]


def init_params(rng: jax.Array, batch: Batch, *, model: nn.Module) -> Any:
  """Returns random parameters of the towers that see `batch`."""
  return model.init(rng, *inputs(batch))["params"]


def init_state(
  rng: jax.Array,
  batch: Batch,
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """Returns the state before the first step; call it under `jax.jit`."""
  params = init_params(rng, batch, model=model)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  model: nn.Module,
  loss_fn: Callable[..., tuple[jax.Array, Any]],
  identify: Callable[[Batch], jax.Array] | None = None,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  frozen: Any = None,
  slices: Slices | None = None,
  skip_nonfinite: bool = False,
) -> tuple[TrainState, Metrics]:
  """Embeds both towers, scores all pairs, and applies one update.

  Args:
    state: the state before the step.
    batch: "image" BHW3 uint8, or "image_embedding" BE float32; "text" BL int32;
      "faults" BK int32, how often each kind of `data.faults.COUNTERS` came up
      for each row; and what else `identify` looks at.
    model: two towers; see `big_siglip.models.SigLIP`.
    loss_fn: (image, text, logit_scale, logit_bias) -> (() loss,
      `losses.LogitStatistics`).
    identify: batch -> ids, which `loss_fn` then gets as a keyword, to know
      examples that stand twice in the batch.
    optimizer: turns gradients into updates.
    schedule: step -> learning rate, for the metrics alone.
    frozen: tree of bools like the parameters; True takes a parameter out of
      the backward pass.
    slices: embed the batch in slices, so that activations of one at a time
      exist; see `big_siglip.microbatch`.
    skip_nonfinite: leave parameters and optimizer state as they were when loss
      or gradient are not finite.

  Returns:
    The state after the step, and metrics: `param_norm` is of the parameters
    after the step, all others are of those before it.
  """

  def embed(params, image, text):
    if frozen is not None:
      params = jax.tree.map(
        lambda p, f: jax.lax.stop_gradient(p) if f else p, params, frozen
      )
    return model.apply({"params": params}, image, text)

  if identify is not None:
    loss_fn = functools.partial(loss_fn, ids=identify(batch))
  (loss, statistics), grads = value_and_grad(
    embed, loss_fn, state.params, *inputs(batch), slices
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  if skip_nonfinite:
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (params, opt_state),
      (state.params, state.opt_state),
    )
  metrics = {
    "loss": loss,
    "finite": finite,
    "faults": batch["faults"].sum(axis=0),
    "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
    "grad_norm": grad_norm,
    # Of the new ones: asking for the old ones would keep a copy of them alive.
    "param_norm": optax.tree.norm(params),
    "update_norm": optax.tree.norm(updates),
    "logit_scale": jnp.exp(state.params["logit_scale"]),
    "logit_bias": state.params["logit_bias"],
    "positive_logit": statistics.positive,
    "negative_logit": statistics.negative,
    "hardest_negative_logit": statistics.hardest_negative.mean(),
  }
  if statistics.duplicates is not None:
    metrics["duplicate_pairs"] = statistics.duplicates
  return TrainState(state.step + 1, params, opt_state), metrics
