"""What a run will need, from the compiler, before anyone rents the chips."""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import build, progress
from big_siglip.config import has_image_tower, patch_lengths
from big_siglip.errors import UserError
from big_siglip.models import flops
from big_siglip.plan import gpus, hlo, operations, peaks, topologies
from big_siglip.train_step import TrainState


@dataclasses.dataclass(frozen=True)
class Plan:
  """Needs of one run; None where the compiler or the chip's sheet is silent.

  Attributes:
    chips: number of chips.
    batch_size: examples a step.
    parameters: of the model.
    state_bytes_per_chip: parameters and optimizer state.
    peak_hbm_bytes_per_chip: the most that is allocated at once, in one step.
    hbm_bytes_per_chip: what the chip has.
    flops_per_step: of the model, without recomputation, over all chips.
    collectives: {kind: {"count", "bytes"}} a step and chip.
    steps: of the whole schedule.
    fits: whether the chip has the memory.
    estimated_cycles_per_step: what the compiler expects its own operations to
      take on a chip, each conditional with its dearest branch.
    optional_cycles_per_step: of these, what conditionals may pass over: chunks
      of a decoder's logits without a target.
    kernel_calls_per_step: how often hand-written kernels run, which it does
      not time.
    kernel_cycles_per_step: what these take at the least: their products at the
      chip's peak.
    estimated_seconds_per_step: of both together. Transfers between chips are
      taken to hide behind computation. Of a GPU: `executed_flops_per_step` at
      an assumed share of its peak.
    mfu: model FLOPs utilization, of that time.
    hours: of the whole schedule.
    chip_hours: of the whole schedule.
    executed_flops_per_step: of all chips, with what is computed again.
    least_seconds_per_step: what no program can beat, by the chip's peaks.
    estimates: {figure: where it comes from}, of those that are no fact.
  """

  chips: int
  batch_size: int
  parameters: int
  state_bytes_per_chip: int
  peak_hbm_bytes_per_chip: int
  hbm_bytes_per_chip: int | None
  flops_per_step: float
  collectives: dict[str, dict[str, int]]
  steps: int
  fits: bool
  estimated_cycles_per_step: int | None = None
  optional_cycles_per_step: int | None = None
  kernel_calls_per_step: int | None = None
  kernel_cycles_per_step: int | None = None
  estimated_seconds_per_step: float | None = None
  mfu: float | None = None
  hours: float | None = None
  chip_hours: float | None = None
  executed_flops_per_step: float | None = None
  least_seconds_per_step: float | None = None
  estimates: dict[str, str] = dataclasses.field(default_factory=dict)

  def excess(self) -> str:
    """Returns in one line by how much the run does not fit."""
    peak, hbm = self.peak_hbm_bytes_per_chip, self.hbm_bytes_per_chip or 0
    return (
      f"does not fit: needs {peak / 2**30:.2f} GiB a chip, which is "
      f"{(peak - hbm) / 2**30:.2f} GiB more than the {hbm / 2**30:.2f} GiB "
      "that it has"
    )


def lengths(config: ConfigDict) -> tuple[int, ...]:
  """Returns of which lengths images are, each of which has a step of its own.

  Args:
    config: of a run; there are none where images are squares.
  """
  if config.model.image.max_patches is None or not has_image_tower(config):
    return ()
  return tuple(sorted({*patch_lengths(config)}))


def make_plan(
  config: ConfigDict,
  topology: str,
  utilization: float = peaks.UTILIZATION,
  length: int | None = None,
) -> Plan:
  """Compiles the train step of `config` for chips that need not be there.

  It says on standard error that it does, and for how long.

  Args:
    config: without mistakes (`config.find_problems`).
    topology: see `topologies.describe`.
    utilization: the share of its peak at which a GPU that is named is taken to
      work.
    length: of images, one of `lengths`; None: the longest.

  Raises:
    UserError: no such topology, or mesh or batch do not fit it.
  """
  devices, chip = topologies.describe(topology, config.mesh.slices)
  if named := gpus.named(topology):
    config = gpus.without_cudnn(config)
  mesh = build.mesh(config, devices)
  length = length or max(lengths(config), default=None)
  state, traced = _traced(config, mesh, length)
  state_bytes = sum(map(_bytes_per_chip, jax.tree.leaves(state)))
  compiler = topologies.compiler(topology, devices)
  peak, text = _compile(
    traced,
    f"compiling for {topology} with {compiler}",
    devices[0].platform,
    gpus.options(topology, devices),
  )
  costs = hlo.costs(text) if text else hlo.Costs()
  step_flops = flops.flops_per_step(config, length)
  timing = {}
  if named:
    executed = operations.executed_flops(traced)
    timing = peaks.timing(
      chip,
      len(devices),
      least=peaks.least_seconds(
        chip, executed / len(devices), state_bytes, costs.collectives
      ),
      executed=executed,
      model_flops=step_flops,
      steps=config.total_steps,
      utilization=utilization,
    )
    timing["estimates"] = peaks.sources(
      chip, compiled=devices[0].platform == "gpu", utilization=utilization
    )
  elif costs.cycles and chip.cycles_per_second:
    kernels = operations.kernel_flops(traced) / len(devices)
    timing = _timing(config, chip, costs, kernels, step_flops, len(devices))
  return Plan(
    chips=len(devices),
    batch_size=config.batch_size,
    parameters=sum(x.size for x in jax.tree.leaves(state.params)),
    state_bytes_per_chip=state_bytes,
    peak_hbm_bytes_per_chip=peak,
    hbm_bytes_per_chip=chip.hbm_bytes,
    flops_per_step=step_flops,
    collectives={
      kind: {"count": count, "bytes": amount}
      for kind, (count, amount) in costs.collectives.items()
    },
    steps=config.total_steps,
    fits=bool(text) and (chip.hbm_bytes is None or peak <= chip.hbm_bytes),
    **timing,
  )


def sweep(
  config: ConfigDict,
  topology: str,
  *,
  batch_sizes: Sequence[int],
  fsdps: Sequence[int],
  remats: Sequence[str],
  utilization: float = peaks.UTILIZATION,
) -> Iterator[tuple[dict[str, Any], Plan | str]]:
  """Plans every mixture; yields ({field: value}, plan or why there is none)."""
  for batch_size in batch_sizes:
    for fsdp in fsdps:
      for remat in remats:
        changes = {"batch_size": batch_size, "fsdp": fsdp, "remat": remat}
        candidate = config.copy_and_resolve_references()
        candidate.batch_size = batch_size
        candidate.mesh.update({"data": -1, "fsdp": fsdp})
        candidate.model.remat = remat
        try:
          yield changes, make_plan(candidate, topology, utilization)
        except UserError as error:
          yield changes, str(error)


def _timing(
  config, chip, costs, kernel_flops, step_flops, chips
) -> dict[str, Any]:
  """Returns what a compiler's cycles, and its kernels' products, make."""
  kernel_seconds = kernel_flops / chip.peak_flops
  seconds = costs.cycles / chip.cycles_per_second + kernel_seconds
  hours = seconds * config.total_steps / 3600
  return {
    "estimated_cycles_per_step": costs.cycles,
    "optional_cycles_per_step": costs.optional_cycles,
    "kernel_calls_per_step": costs.kernel_calls,
    "kernel_cycles_per_step": round(kernel_seconds * chip.cycles_per_second),
    "estimated_seconds_per_step": seconds,
    "mfu": step_flops / (seconds * chips * chip.peak_flops),
    "hours": hours,
    "chip_hours": hours * chips,
  }


def _traced(
  config: ConfigDict, mesh: Mesh, length: int | None
) -> tuple[TrainState, Any]:
  """Returns the abstract state of a run, and its step as JAX traces it."""
  with progress.waiting("laying out the step", after=4):
    program = build.program(config, mesh)
    batch = build.abstract_batch(config, mesh, length)
    state = program.abstract_state
    return state, program.step.trace(state, batch)


def _compile(
  traced: Any, work: str, platform: str, options: dict[str, Any] | None
) -> tuple[int, str]:
  """Returns peak bytes and the program's text; no text if it does not fit."""
  with progress.waiting("laying out the step", after=4):
    lowered = traced.lower()
  try:
    with progress.waiting(work):
      compiled = lowered.compile(options)
  except jax.errors.JaxRuntimeError as error:
    used = hlo.wanted_bytes(str(error))
    if used is None:
      raise
    return used, ""
  peak = hlo.peak_bytes(compiled.memory_analysis(), platform)
  return peak, compiled.as_text()


def _bytes_per_chip(leaf: jax.ShapeDtypeStruct) -> int:
  shape = leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * np.dtype(leaf.dtype).itemsize
