"""The train state before a run's first step: new, of weights, of a run."""

from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip.build import Program
from big_siglip.train_step import TrainState
from big_siglip.trained import initial, stages


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
