"""What runs on the devices: initialization and the step, from a config.

It knows of the data no more than shapes, and loads nothing that reads them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import ema, sharding
from big_siglip.config import is_halved, patch_lengths
from big_siglip.data.batch import Fields
from big_siglip.models import make_model
from big_siglip.objectives import make_terms, Term, total
from big_siglip.optimizer import make_optimizer
from big_siglip.parameter_rules import frozen_mask
from big_siglip.train_step import (
  init_params,
  init_state,
  state_of,
  train_step,
  TrainState,
)


@dataclasses.dataclass(frozen=True)
class Program:
  """What the loop runs on the devices.

  Attributes:
    abstract_state: shapes, dtypes and shardings of the train state.
    init: () -> TrainState, on the mesh.
    init_params: () -> its parameters alone.
    step: (TrainState, batch) -> (TrainState, metrics); the given state is
      donated.
    start_from: (TrainState, parameters) -> the state before the first step with
      these parameters: their average and what terms carry start from them too.
  """

  abstract_state: TrainState
  init: Callable[[], TrainState]
  init_params: Callable[[], Any]
  step: jax.stages.Wrapped
  start_from: Callable[[TrainState, Any], TrainState]


def make_program(
  config: ConfigDict,
  fields: Fields,
  device_mesh: Mesh,
  loss_terms: Sequence[Term] | None = None,
  began: Mapping[str, int] | None = None,
) -> Program:
  """Returns initialization and step for the mesh, not compiled yet.

  Args:
    config: the config.
    fields: the arrays of a batch that the model sees.
    device_mesh: of `sharding.make_mesh`.
    loss_terms: the summands of the loss; None: those of the config.
    began: see `make_optimizer`; the state is the same with any.

  Raises:
    UserError: a rule of `config.optimizer.rules` is wrong.
  """
  model = make_model(config.model, sharding.batch_sharding(device_mesh))
  if loss_terms is None:
    loss_terms = make_terms(config, device_mesh)
  rng = jax.random.key(config.seed)
  example = sharding.abstract(fields, 1)
  parts = {"model": model, "terms": loss_terms}
  params = jax.eval_shape(functools.partial(init_params, **parts), rng, example)
  optimizer, schedule = make_optimizer(
    config.optimizer, params, total_steps=config.total_steps, began=began
  )

  def begun(make: Callable[..., Any], **options: Any) -> Any:
    batch = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), example)
    return make(rng, batch, **parts, **options)

  options = {"optimizer": optimizer, "average": config.ema.decay is not None}
  first = functools.partial(state_of, terms=loss_terms, **options)
  abstract = jax.eval_shape(first, params)  # The model is not traced again.
  shardings = sharding.state_sharding(abstract, device_mesh)

  def step(state, batch):
    faults = batch["faults"].sum(axis=0)  # Of the loader, for the log.
    batch = _trained(config, device_mesh, batch)
    state, metrics = train_step(
      state,
      batch,
      look=model.look,
      terms=loss_terms,
      optimizer=optimizer,
      schedule=schedule,
      seed=config.seed,
      frozen=_frozen(params, config),
      slices=_slices(config, device_mesh, batch),
      skip_nonfinite=config.nonfinite == "skip",
      ema_decay=config.ema.decay,
    )
    return state, {**metrics, "faults": faults}

  return Program(
    abstract_state=sharding.placed(abstract, device_mesh),
    init=jax.jit(
      functools.partial(begun, init_state, **options), out_shardings=shardings
    ),
    init_params=jax.jit(
      functools.partial(begun, init_params), out_shardings=shardings.params
    ),
    step=jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(shardings, sharding.replicated(device_mesh)),
    ),
    start_from=functools.partial(_start_from, loss_terms),
  )


def _start_from(
  loss_terms: Sequence[Term], state: TrainState, params: Any
) -> TrainState:
  def placed(new, old):
    # What is no copy of a parameter was made on one device.
    if new.sharding == old.sharding:
      return new
    return jax.device_put(np.asarray(new), old.sharding)

  carry = total.init_carry(loss_terms, params)
  return state.replace(
    params=params,
    carry=jax.tree.map(placed, carry, state.carry),
    ema=None if state.ema is None else ema.start(params),
  )


def _trained(
  config: ConfigDict, device_mesh: Mesh, batch: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns what of a batch is trained: all rows, or half of them."""
  batch = {name: x for name, x in batch.items() if name != "faults"}
  if "patches" in batch and is_halved(config, batch["patches"].shape[1]):
    return _first_halves(device_mesh, batch)
  return batch


def _first_halves(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the first half of the rows that each device has.

  Args:
    mesh: over which the rows are sharded.
    batch: arrays of as many rows.
  """
  count = sharding.batch_devices(mesh)

  def half(x: jax.Array) -> jax.Array:
    own = x.reshape(count, len(x) // count, *x.shape[1:])
    rows = own[:, : own.shape[1] // 2].reshape(len(x) // 2, *x.shape[1:])
    return jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(mesh))

  return {name: half(x) for name, x in batch.items()}


def _slices(
  config: ConfigDict, device_mesh: Mesh, batch: Mapping[str, Any]
) -> sharding.Slices | None:
  rows, examples = config.microbatch, config.batch_size
  if rows is not None and "patches" in batch:
    examples, length = batch["patches"].shape[:2]
    rows = _fitting_rows(config, device_mesh, length, examples)
  if rows in (None, examples):
    return None
  count = examples // rows
  return sharding.Slices(count, device_mesh, sharding.BATCH_AXES)


def _fitting_rows(
  config: ConfigDict, device_mesh: Mesh, length: int, examples: int
) -> int:
  """Returns the examples of a slice whose images have `length` patches.

  `config.microbatch` is of the longest sequences; of shorter ones a slice has
  as many more as have no more patches together.
  """
  longest = max(patch_lengths(config))
  most = config.microbatch * longest // length
  shared = sharding.batch_devices(device_mesh)
  return max(
    rows
    for rows in range(1, examples + 1)
    if rows <= max(most, config.microbatch)
    and examples % rows == 0
    and rows % shared == 0
  )


def _frozen(params: Any, config: ConfigDict) -> Any:
  """Returns the mask of frozen parameters, or None where there are none."""
  mask = frozen_mask(params, config.optimizer.rules)
  return mask if any(map(np.any, jax.tree.leaves(mask))) else None
