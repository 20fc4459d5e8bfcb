"""The train state before a run's first step: new, of weights, of a run."""

from collections.abc import Callable, Mapping
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip import platforms, sharding
from big_siglip.build import Program
from big_siglip.errors import UserError
from big_siglip.train_step import TrainState
from big_siglip.trained import initial, stages

_OF_PROTOTYPES = re.compile("(^|/)(prototypes$|centres/)")


def make(
  config: ConfigDict, program: Program, mesh: Mesh, say: Callable[[str], None]
) -> tuple[TrainState, Mapping[str, Any]]:
  """Returns the state, and where the data start.

  Args:
    config: of the run; `config.init` says what it starts from.
    program: what the run does on its devices.
    mesh: where the state lies.
    say: told what was taken of another run.
  """
  state = program.init()
  if config.init.state == "all":
    stage = stages.go_on(config, state, mesh, program.start_from)
    say("\n".join(stage.report))
    return stage.state, stage.data
  if config.init.path:
    params = initial.initial_params(config, state.params, mesh)
    state = program.start_from(state, params)
  return state, {}


def check_memory(config: ConfigDict, state: TrainState) -> None:
  """Makes sure that each device has room for its part of a state.

  What a step needs beside it only the compiler knows (`big-siglip plan`).

  Args:
    config: the config.
    state: shapes, dtypes and shardings.

  Raises:
    UserError: it has not.
  """
  device = min(state.step.sharding.addressable_devices, key=lambda d: d.id)
  there = platforms.device_bytes(device)
  sizes = {path: _bytes(x) for path, x in sharding.flatten(state).items()}
  whole = sum(sizes.values())
  if there is None or whole <= there:
    return
  said = (
    f"the train state takes {whole / 2**30:,.1f} GiB a device, which has "
    f"{there / 2**30:,.1f} GiB"
  )
  problem = f"config.model: {said}"
  for name, spec in config.terms.items():
    # There is a number of each in the centres, too.
    own = sum(n for path, n in sizes.items() if _OF_PROTOTYPES.search(path))
    if spec.kind == "distillation" and whole - own <= there:
      problem = (
        f"config.terms.{name}.prototypes={spec.prototypes}: memory cannot hold "
        f"them: {said}; {own / 2**30:,.1f} of these are theirs"
      )
  raise UserError(f"{problem} (config.mesh.fsdp shares it among devices)")


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
  """Returns what a device holds of an array."""
  shape = leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize
