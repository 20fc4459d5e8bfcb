"""What a config would train, without data and without computing anything."""

import json
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from big_siglip import build, platforms
from big_siglip.config import has_image_tower
from big_siglip.models import flops
from big_siglip.run import workdir
from big_siglip.sharding import path_string


def print_plan(config: ConfigDict) -> None:
  """Prints config, parameter table with shardings, and step count.

  A mesh of more devices than are attached is simulated.

  Raises:
    UserError: mesh, batch or rules do not fit.
  """
  sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  count = math.prod(size for size in sizes if size > 0)
  platforms.prepare(count)
  devices = None  # All that are attached.
  if len(jax.devices()) < count or len(jax.devices()) % count:
    devices = jax.devices("cpu")[:count]
  mesh = build.mesh(config, devices)
  state = build.program(config, mesh).abstract_state
  print(json.dumps(workdir.as_json(config), indent=2))
  print()
  _print_parameters(state.params)
  total = _count(state.params)
  axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
  per_device = sum(map(_device_bytes, jax.tree.leaves(state)))
  steps, batch = config.total_steps, config.batch_size
  step_flops = (
    3
    * batch
    * flops.flops_per_example(config.model, image_tower=has_image_tower(config))
  )
  for name, value in (
    ("parameters", f"{total:,}"),
    ("of the image tower", f"{_count(state.params.get('image', ())):,}"),
    ("of the text tower", f"{_count(state.params['text']):,}"),
    ("mesh", f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({axes})"),
    ("state a device", f"{per_device / 2**20:,.1f} MiB"),
    (
      "batch",
      f"{batch:,} = {batch * mesh.shape['tensor'] // mesh.size:,} a device",
    ),
    ("FLOPs a step", f"{step_flops:.3g}"),
    ("steps", f"{steps:,}"),
    ("examples", f"{steps * batch:,}"),
  ):
    print(f"{name:20} {value}")


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


def _device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  shape = leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize
