"""What `big_siglip` offers in Python beside `load`."""

from collections.abc import Mapping
import contextlib
import dataclasses
import difflib
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from big_siglip import (
  build,
  command_line,
  loop,
  metrics,
  platforms,
  progress,
  sharding,
)
from big_siglip.config import find_problems
from big_siglip.errors import naming, raise_problems, UserError
from big_siglip.evaluation import results
from big_siglip.evaluators import Result
from big_siglip.progress import speaking
from big_siglip.run import workdir
from big_siglip.run.interrupts import Interrupts
from big_siglip.trained import decoders, saved
from big_siglip.trained.inference import Model


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run, once training ended.

  Attributes:
    folder: where all of it lies, for `big_siglip.load`.
    step: the last one that is saved.
    finished: whether it is the last of the config, and not one at which Ctrl-C
      stopped it.
    metrics: the last value of each: "loss", "evals/NAME/METRIC" ...
  """

  folder: epath.Path
  step: int
  finished: bool
  metrics: dict[str, float]


def load_config(
  name: str | os.PathLike[str], changes: Mapping[str, Any]
) -> ConfigDict:
  """See `big_siglip.load_config`."""
  with naming({"--config": "name"}):
    config = command_line.load_unchecked(os.fspath(name))
  problems = _change(config, changes, "config")
  raise_problems(problems + find_problems(config))
  return config


def train(config: ConfigDict, folder: str | os.PathLike[str]) -> Trained:
  """See `big_siglip.train`."""
  if not isinstance(config, ConfigDict):
    raise UserError(f"config={config!r}: must be of big_siglip.load_config")
  if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
    raise UserError(f"folder={folder!r}: must be a string or a pathlib.Path")
  raise_problems(find_problems(config))
  platforms.prepare(keep=False)
  place = epath.Path(folder).expanduser()
  stop = Interrupts()
  try:
    with progress.speaking():
      loop.train(config, os.fspath(place), stop)
  finally:
    stop.close()
  step = max(workdir.saved_steps(place), default=0)
  finished = step >= config.total_steps
  return Trained(place, step, finished, metrics.last_metrics(place))


def evaluate(
  model: Model | str | os.PathLike[str],
  evals: ConfigDict | str | None,
  progress: bool,
) -> dict[str, Result]:
  """See `big_siglip.evaluate`."""
  with speaking() if progress else contextlib.nullcontext():
    return _evaluate(model, evals)


def _evaluate(
  model: Model | str | os.PathLike[str], evals: ConfigDict | str | None
) -> dict[str, Result]:
  platforms.prepare(keep=False)
  if isinstance(evals, str):
    with naming({"--evals": "evals"}):
      evals = command_line.load_evals(evals)
  if isinstance(model, Model):
    config = results.with_evals(model.config, None, evals)
    evaluators = build.evaluators(config, model.mesh)
    params = model.params
    if config.get("terms"):
      checkpoint = saved.open_model(model.path)[0]
      params = decoders.joined(params, checkpoint, config, model.mesh)
    return results.run(evaluators, params)
  if not isinstance(model, str | os.PathLike):
    raise UserError(f"model={model!r}: must be a path or of big_siglip.load")
  with naming({"--checkpoint": "model"}):
    checkpoint, config, load_params_on = saved.open_model(os.fspath(model))
  config = results.with_evals(config, None, evals)
  mesh = sharding.make_mesh()
  evaluators = build.evaluators(config, mesh)
  params = load_params_on(mesh)
  return results.run(
    evaluators, decoders.joined(params, checkpoint, config, mesh)
  )


def _change(
  section: ConfigDict, changes: Mapping[str, Any], name: str
) -> list[str]:
  """Sets fields of a config; returns a line for each that cannot be set."""
  problems = []
  for field, value in changes.items():
    first, _, rest = field.partition(".")
    if rest:
      field, value = first, {rest: value}
    here = f"{name}.{field}"
    if field not in section:
      close = difflib.get_close_matches(field, section.keys(), n=1)
      hint = f"; did you mean {close[0]!r}?" if close else ""
      problems.append(f"{here}: no such field{hint}")
    elif isinstance(section[field], ConfigDict):
      if value == {}:  # As on the command line: `evals={}` leaves none.
        section[field] = ConfigDict()
      elif isinstance(value, Mapping | ConfigDict):
        problems += _change(section[field], dict(value.items()), here)
      else:
        problems.append(f"{here}={value!r}: must be a dict of its fields")
    else:
      try:
        section[field] = (
          os.fspath(value) if isinstance(value, os.PathLike) else value
        )
      except (TypeError, ValueError):
        kind = section.get_type(field).__name__
        problems.append(f"{here}={value!r}: must be of type {kind}")
  return problems
