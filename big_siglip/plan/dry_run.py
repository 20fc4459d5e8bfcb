"""What a config would train and a start would say; computes nothing."""

from collections.abc import Iterator
import json
import math
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip import build, platforms, progress
from big_siglip.models import flops
from big_siglip.objectives import costs
from big_siglip.plan import start
from big_siglip.run import workdir
from big_siglip.sharding import path_string
from big_siglip.trained import from_init


def run(config: ConfigDict, folder: str | None = None) -> None:
  """Prints what would be trained, and what a start would say.

  The mesh is simulated, of as many CPU devices as it has or as accelerators are
  attached: these stay at their work.

  Args:
    config: without mistakes (`config.find_problems`).
    folder: the run's, if any.

  Raises:
    UserError: whatever a start would say is wrong, as far as weights, data and
      folder are given.
  """
  sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  count = math.prod(size for size in sizes if size > 0)
  count = platforms.stay_on_cpu(count)
  with progress.waiting("opening the weights", after=4):
    config, taken = from_init.fill(config, folder)
  mesh = build.mesh(config, jax.devices("cpu")[:count])
  print_plan(config, mesh)
  print(flush=True)
  with progress.waiting("opening what a start would", after=4):
    lines = list(start.lines(config, mesh, folder))
  for line in [*taken, *lines]:
    print(line)


def print_plan(config: ConfigDict, mesh: Mesh) -> None:
  """Prints config, parameter table with shardings, and step count.

  Raises:
    UserError: rules do not fit.
  """
  with progress.waiting("laying out the model", after=4):
    state = build.program(config, mesh).abstract_state
  print(json.dumps(workdir.as_json(config), indent=2))
  print()
  _print_parameters(state.params)
  total = _count(state.params)
  axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
  steps, batch = config.total_steps, config.batch_size
  for name, value in (
    ("parameters", f"{total:,}"),
    ("of the image tower", f"{_count(state.params.get('image', ())):,}"),
    ("of the text tower", f"{_count(state.params['text']):,}"),
    *(
      (f"of {name}", f"{_count(state.params[name]):,}")
      for name in config.terms
      if name in state.params
    ),
    ("mesh", f"{mesh.size} devices ({axes})"),
    ("state a device", _mebibytes(state)),
    ("of the optimizer", _mebibytes(state.opt_state)),
    *(
      (f"carried by {name}", f"{_count(tree):,}, {_mebibytes(tree)}")
      for name, tree in (state.carry or {}).items()
    ),
    (
      "batch",
      f"{batch:,} = {batch * mesh.shape['tensor'] // mesh.size:,} a device",
    ),
    *_flops(config),
    ("steps", f"{steps:,}"),
    ("examples", f"{steps * batch:,}"),
  ):
    print(f"{name:20} {value}")


def _flops(config: ConfigDict) -> Iterator[tuple[str, str]]:
  """Yields lines of a step: of both towers, and of each term its share."""
  towers = flops.flops_per_step(config)
  found = costs.flops_of_terms(config)
  whole = towers + sum(found.values())
  share = f", {towers / whole:.0%} of all" if found else ""
  yield "FLOPs a step", f"{towers:.3g}{share}"
  for name, own in found.items():
    writes = config.terms[name].kind == "captioning"
    said = ", each token a target" * writes
    yield f"and of {name}", f"{own:.3g}, {own / whole:.0%} of all{said}"


def _print_parameters(params: Any) -> None:
  rows = [("parameter", "shape", "sharding", "count")]
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    shape = " x ".join(map(str, leaf.shape)) or "scalar"
    spec = ", ".join(_axis_name(axis) for axis in leaf.sharding.spec) or "whole"
    rows.append((path_string(path), shape, spec, f"{leaf.size:,}"))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for *left, count in rows:
    cells = [
      cell.ljust(width) for cell, width in zip(left, widths, strict=False)
    ]
    print("  ".join(cells), count.rjust(widths[-1]))
  print()


def _axis_name(axis: str | tuple[str, ...] | None) -> str:
  return "*".join(axis) if isinstance(axis, tuple) else axis or "-"


def _count(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _mebibytes(tree: Any) -> str:
  """Returns what a device holds of a tree."""
  return f"{sum(map(_device_bytes, jax.tree.leaves(tree))) / 2**20:,.1f} MiB"


def _device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  shape = leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize
