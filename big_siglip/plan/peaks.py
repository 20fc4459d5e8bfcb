"""How long a step takes, by what a chip's data sheet promises."""

from collections.abc import Mapping
from typing import Any

from big_siglip.plan.chips import Chip

# The share of its peak at which a GPU is taken to work, products that are
# computed again included. An assumption, not a measurement.
UTILIZATION = 0.5


def least_seconds(
  chip: Chip,
  flops: float,
  state_bytes: int,
  collectives: Mapping[str, tuple[int, int]],
) -> float:
  """Returns what no step can beat.

  That is the longest of three: the products at the chip's peak; state read and
  written once; and what is exchanged, at the speed of the links.

  Args:
    chip: whose peaks are known.
    flops: of a chip, with what is computed again.
    state_bytes: of a chip.
    collectives: as of `hlo.Costs`.
  """
  assert chip.peak_flops and chip.bytes_per_second
  assert chip.link_bytes_per_second
  sent = sum(amount for _, amount in collectives.values())
  return max(
    flops / chip.peak_flops,
    2 * state_bytes / chip.bytes_per_second,
    sent / chip.link_bytes_per_second,
  )


def timing(
  chip: Chip,
  chips: int,
  *,
  least: float,
  executed: float,
  model_flops: float,
  steps: int,
  utilization: float,
) -> dict[str, Any]:
  """Returns fields of `plan.Plan` for a GPU that is not there.

  Args:
    chip: whose peaks are known.
    chips: how many.
    least: of `least_seconds`.
    executed: FLOPs a step over all chips, with what is computed again.
    model_flops: those without.
    steps: of the whole schedule.
    utilization: the share of the peak that is assumed.
  """
  assert chip.peak_flops
  seconds = max(least, executed / (chips * chip.peak_flops * utilization))
  hours = seconds * steps / 3600
  return {
    "executed_flops_per_step": executed,
    "least_seconds_per_step": least,
    "estimated_seconds_per_step": seconds,
    "mfu": model_flops / (seconds * chips * chip.peak_flops),
    "hours": hours,
    "chip_hours": hours * chips,
  }


def sources(
  chip: Chip, *, compiled: bool, utilization: float
) -> dict[str, str]:
  """Returns {figure: where it comes from}, see `plan.Plan.estimates`.

  Args:
    chip: the GPU.
    compiled: whether XLA's compiler for GPUs made the program; else that for
      CPUs did.
    utilization: the share of the peak that is assumed.
  """
  if compiled:
    memory = (
      "what XLA's compiler for GPUs allocates, attention by plain products; "
      "cuDNN's needs less, its own workspace is not counted"
    )
  else:
    memory = (
      "what XLA's compiler for CPUs allocates, which computes in float32 much "
      "that a GPU has in bfloat16: more than a GPU needs (docs/gpu.md)"
    )
  sheet = f"NVIDIA's data sheet of the {chip.kind}"
  return {
    "peak memory a chip": memory,
    "memory of a chip": "what nvidia-smi shows, times the share that JAX takes "
    "(XLA_CLIENT_MEM_FRACTION, 0.75 unless set)",
    "FLOPs executed a step": "matrix products of the traced program",
    "time a step, at least": f"peaks of {sheet}",
    "time a step, estimated": f"{utilization:.0%} of the peak of {sheet}: an "
    "assumption (--utilization), measured nowhere",
  }
