"""A run that goes on from another run's whole state, with a config of its own.

Parameters, moments, step, schedule and data position go on where the newest, or
the named, checkpoint of `config.init.path` left them. What has no place there
starts fresh. The same mechanism trains a finished run for longer.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import re
from typing import Any

from etils import epath
from flax import traverse_util
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip import sharding
from big_siglip.checkpoint import read_any
from big_siglip.config import changed_fields, has_image_tower
from big_siglip.errors import naming, raise_problems, UserError
from big_siglip.models import merged
from big_siglip.models.stacking import restack_leaves
from big_siglip.parameter_rules import parameter_of
from big_siglip.run import workdir
from big_siglip.sharding import path_string
from big_siglip.train_step import TrainState
from big_siglip.trained import saved
from big_siglip.trained.fitting import (
  Fit,
  fit_to,
  take,
  Taken,
  warn_of_differences,
)
from big_siglip.trained.moments import beginnings, go_on_optimizing

_Leaves = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Stage:
  """Where a run starts that goes on from another one.

  Attributes:
    state: on the devices of the run.
    data: what a checkpoint holds beside the state. "began" is there if some
      parameters are younger than the others; see `late_start.counted_from`.
    report: lines for the user: what was taken over, and what was not.
  """

  state: TrainState
  data: dict[str, Any]
  report: list[str]


def go_on(
  config: ConfigDict,
  fresh: TrainState,
  mesh: Mesh,
  start_from: Callable[[TrainState, Any], TrainState],
) -> Stage:
  """Returns the state that a run with `config.init.state="all"` starts from.

  What becomes of moments is said by `moments.go_on_optimizing`.

  Args:
    config: the config of the new run.
    fresh: its state before the first step.
    mesh: where that lies.
    start_from: of `build.Program`: what has no past of its own, such as the
      teacher of a new term, starts from the parameters that are taken over.

  Raises:
    UserError: there is no checkpoint with optimizer state, or it is damaged, or
      does not fit; or it has taken `config.total_steps` already.
  """
  run, checkpoint = find(config)
  before = saved.load_config(run)
  old, data = read_any(checkpoint, mesh)
  warn_of_differences(before, config)
  fit = fit_to(config, before.data)

  def parameters(field: str) -> _Leaves:
    leaves = _below(old, field)
    return _parameters(leaves, before, config, checkpoint, mesh)

  params, taken = take(parameters("params"), fresh.params, fit)
  raise_problems(taken.misfits[:20])
  started = start_from(fresh, params)
  average = None
  if started.ema is not None:
    average, _ = take(parameters("ema"), started.ema, fit)
  scan = config.model.scan
  opt_state, began, moments = go_on_optimizing(
    restack_leaves(_below(old, "opt_state"), scan),
    fresh,
    taken,
    beginnings(_below(old, "params"), data.get("began", {}), scan),
    same_rule=before.optimizer.name == config.optimizer.name,
  )
  carry, carried = _carry(
    _laid_out(_below(old, "carry"), before, config), started, fit
  )
  state = fresh.replace(
    step=jax.device_put(old["step"], fresh.step.sharding),
    params=params,
    opt_state=opt_state,
    carry=carry,
    ema=average,
  )
  position, said = _position(data, before, config)
  if began:
    position["began"] = began
  changes = changed_fields(workdir.read_config(run), workdir.as_json(config))
  report = [f"going on from {checkpoint}, after step {int(old['step'])}"]
  report += [f"  {line}" for line in changes]
  report += [*_lines("parameters", taken), *_lines("moments", moments)]
  report += [*_lines("carried by terms", carried), *said]
  return Stage(state, position, report)


def find(config: ConfigDict) -> tuple[epath.Path, epath.Path]:
  """Returns the folders of the run to go on from and of its checkpoint.

  Raises:
    UserError: there is none, or none with optimizer state, or it has taken
      `config.total_steps` already.
  """
  path = config.init.path
  rule = "config.init.state='all' goes on from a run's checkpoint"
  if not path:
    raise UserError(f"config.init.path={path}: must be set, since {rule}")
  if not saved.is_run(path):
    raise UserError(
      f"config.init.path={path}: no run with a checkpoint lies here, and {rule}"
    )
  with naming({"--checkpoint": "config.init.path"}):
    run, checkpoint = saved.find(path)
  if not (checkpoint / "optimizer").is_dir():
    raise UserError(
      f"config.init.path={path}: {checkpoint} holds parameters alone, and "
      f"{rule}; config.init.state='params' starts from parameters"
    )
  step, total = int(checkpoint.name), config.total_steps
  if total <= step:
    raise UserError(
      f"config.total_steps={total}: must be above {step}, the steps that "
      f"config.init.path={path} has taken, since these count"
    )
  return run, checkpoint


def _below(leaves: Mapping[str, Any], field: str) -> dict[str, Any]:
  """Returns the leaves of a field of a state, by their paths below it."""
  start = f"{field}/"
  return {
    path.removeprefix(start): leaf
    for path, leaf in leaves.items()
    if path.startswith(start)
  }


def _parameters(
  leaves: _Leaves,
  before: ConfigDict,
  config: ConfigDict,
  checkpoint: epath.Path,
  mesh: Mesh,
) -> _Leaves:
  """Returns parameters as the new config names them."""
  if not leaves:
    return {}
  tree = traverse_util.unflatten_dict(leaves, sep="/")
  if has_image_tower(config) and not has_image_tower(before):
    tree["image"] = saved.load_params(checkpoint, before, mesh)["image"]
  return _laid_out(sharding.flatten(tree), before, config)


def _laid_out(
  leaves: _Leaves, before: ConfigDict, config: ConfigDict
) -> _Leaves:
  """Returns parameters, or trees of copies of them, in the new layout.

  What was adapted (LoRA) is adapted anew: the sum is what goes on.

  Args:
    leaves: by their paths, at whose ends are those of parameters.
    before: the config that they are of.
    config: the new one.
  """
  old, new = (workdir.as_json(c)["model"] for c in (before, config))
  if any(old.get(field) != new[field] for field in ("lora", "scan")):
    roots = {
      m[1] for m in map(re.compile(r"(|.*/)lora/.*").fullmatch, leaves) if m
    }
    for root in roots:
      own = {path for path in leaves if path.startswith(root)}
      tree = traverse_util.unflatten_dict(
        {path.removeprefix(root): leaves[path] for path in own}, sep="/"
      )
      whole = sharding.flatten(merged(tree, before.model))
      leaves = {path: leaves[path] for path in leaves.keys() - own}
      leaves |= {f"{root}{path}": leaf for path, leaf in whole.items()}
  return restack_leaves(leaves, config.model.scan)


def _carry(old: _Leaves, fresh: TrainState, fit: Fit) -> tuple[Any, Taken]:
  """Returns what goes from step to step; a copy of parameters as these."""
  names = sharding.flatten(fresh.params).keys()
  taken = Taken()

  def choose(key, leaf):
    path = path_string(key)
    new = None
    if path in old:
      new = fit(parameter_of(path, names) or path, old[path], leaf)
    if new is None:
      taken.fresh.append(path)
      return leaf
    (taken.same if new is old[path] else taken.resampled).append(path)
    return jax.device_put(new.astype(leaf.dtype), leaf.sharding)

  carry = jax.tree_util.tree_map_with_path(choose, fresh.carry)
  taken.left.extend(old.keys() - sharding.flatten(carry).keys())
  return carry, taken


def _position(
  data: Mapping[str, Any], before: ConfigDict, config: ConfigDict
) -> tuple[dict[str, Any], list[str]]:
  """Returns where in its data the run starts, and lines that say so."""
  seen = data["next_batch"] * before.batch_size
  batch = seen // config.batch_size
  line = f"  data: goes on at batch {batch}"
  if config.batch_size != before.batch_size:
    line += (
      f" = {seen} examples seen / config.batch_size={config.batch_size}, which "
      f"was {before.batch_size}"
    )
  lines = [line]
  old, new = (
    {"seed": c.seed, "data": workdir.as_json(c)["data"]}
    for c in (before, config)
  )
  if changed_fields(old, new):
    lines.append(
      "  data: are others, or in another order; that many of theirs count as "
      "seen"
    )
  position = {
    "next_batch": batch,
    "skipped": data.get("skipped", {}),
    "skipped_steps": data.get("skipped_steps", 0),
  }
  return position, lines


def _lines(what: str, taken: Taken) -> list[str]:
  """Returns a line for each kind of fate."""
  kinds = {
    "taken over": taken.same,
    "resampled": taken.resampled,
    "fresh": taken.fresh,
    "left behind": taken.left,
  }
  return [
    f"  {what} {kind}: {_listed(names)}"
    for kind, names in kinds.items()
    if names
  ]


def _listed(names: Iterable[str], most: int = 8) -> str:
  """Returns the names, or how many there are of each part of the model."""
  names = sorted(names)
  if len(names) <= most:
    return ", ".join(names)
  parts: dict[str, list[str]] = {}
  for name in names:
    parts.setdefault("/".join(name.split("/")[:2]), []).append(name)
  return ", ".join(
    inside[0] if len(inside) == 1 else f"{part} ({len(inside)})"
    for part, inside in parts.items()
  )
