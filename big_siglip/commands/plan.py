"""Says what a run will need before anyone rents the chips.

big-siglip plan --config=configs/so400m.py --topology=v5e:16x16 [--json]
big-siglip plan --config=configs/b16.py --topology=v5e:4x4 --sweep
big-siglip plan --config=configs/gpu.py --topology=gpu:h100

The TPU compiler does it without a TPU (pip install 'big_siglip[tpu]'), that for
GPUs without a GPU (docs/gpu.md). Where the length of images is drawn
(docs/naflex.md), each is planned. Ends with 3 if the run does not fit into the
chips' memory.
"""

import dataclasses
import json
import sys

from absl import flags, logging
from ml_collections import ConfigDict

from big_siglip import progress
from big_siglip.command_line import parse_flags
from big_siglip.errors import exit_on_error, UserError
from big_siglip.schema.words import REMATS

_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "Chips: v5e:16x16 and the like (v4, v5e, v5p, v6e), gpu:h100x8 and the like "
  "(docs/gpu.md), cpu:N, or gpu:N, those that are attached.",
)
_UTILIZATION = flags.DEFINE_float(
  "utilization",
  None,
  "The share of its peak at which a GPU that is not there is taken to work; "
  "default: 0.5.",
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_SWEEP = flags.DEFINE_bool(
  "sweep", False, "Try batch sizes, meshes and remat, and print the best."
)
_BATCH_SIZES = flags.DEFINE_list(
  "batch_sizes", None, "Batch sizes of --sweep; default: the config's."
)
_FSDPS = flags.DEFINE_list(
  "fsdps", None, "Sizes of mesh.fsdp for --sweep; default: the config's, 1."
)
_REMATS = flags.DEFINE_list(
  "remats",
  ["none", "projections", "attention", "mlp", "full"],
  "Values of model.remat for --sweep.",
)
_NOT_FITTING = 3


def parse(argv: list[str]) -> ConfigDict:
  """Returns the config that the flags ask for."""
  with exit_on_error():
    config = parse_flags(argv)
    if not _TOPOLOGY.value:
      raise UserError("--topology=KIND:SHAPE must be given, such as v5e:16x16")
    share = _UTILIZATION.value
    if share is not None and not 0 < share <= 1:
      raise UserError(f"--utilization={share}: must lie in (0, 1]")
    _integers("batch_sizes", _BATCH_SIZES.value)
    _integers("fsdps", _FSDPS.value)
    for remat in _REMATS.value:
      if remat not in REMATS:
        allowed = ", ".join(REMATS)
        raise UserError(f"--remats={remat}: must be one of {allowed}")
    return config


def main(config: ConfigDict) -> None:
  """Prints a table or JSON; exits with 3 if the run does not fit."""
  logging.set_verbosity(logging.ERROR)
  with progress.loading():
    import jax

    # Plans are compiled, not run: whatever is attached may stay at its work.
    if not _TOPOLOGY.value.removeprefix("gpu:").isdecimal():
      jax.config.update("jax_platforms", "cpu")
    from big_siglip.plan import peaks, plan
    from big_siglip.trained import from_init
  share = _UTILIZATION.value or peaks.UTILIZATION
  with exit_on_error():
    config, taken = from_init.fill(config)
    if not _JSON.value:
      print("\n".join(taken), end="\n" * bool(taken))
    if _SWEEP.value:
      made = _sweep(plan, config, share)
    else:
      made = _plan(plan, config, share)
  if made is None or not made.fits:
    excess = made.excess() if made else "does not fit: nothing of the sweep"
    print(f"error: {_TOPOLOGY.value}: {excess}", file=sys.stderr)
    sys.exit(_NOT_FITTING)


def _plan(plan, config, share):
  """Prints the plan, of images' lengths each; returns that of the longest."""
  made = {
    length: plan.make_plan(config, _TOPOLOGY.value, share, length)
    for length in plan.lengths(config) or (None,)
  }
  longest, several = list(made.values())[-1], len(made) > 1
  seconds = [own.estimated_seconds_per_step for own in made.values()]
  mean = None if None in seconds else sum(seconds) / len(seconds)
  if _JSON.value:
    said = dataclasses.asdict(longest)
    if several:
      each = {length: dataclasses.asdict(own) for length, own in made.items()}
      said = {"lengths": each, "mean_seconds_per_step": mean}
    print(json.dumps(said))
    return longest
  for length, own in made.items():
    if several:
      print(f"\n{length} patches")
    _print_table(own)
  if several and mean is not None:
    hours = mean * config.total_steps / 3600
    print(f"\n{'mean over the lengths':28} {mean:.3f} s, {hours:,.1f} hours")
  return longest


def _sweep(plan, config, share):
  """Prints every try as it comes, then the fastest that fits; or None."""
  fsdps = _FSDPS.value or sorted({str(config.mesh.fsdp), "1"})
  best, chosen = None, None
  for changes, made in plan.sweep(
    config,
    _TOPOLOGY.value,
    batch_sizes=_integers("batch_sizes", _BATCH_SIZES.value)
    or [config.batch_size],
    fsdps=_integers("fsdps", fsdps),
    remats=_REMATS.value,
    utilization=share,
  ):
    said = made if isinstance(made, str) else _summary(made)
    print(" ".join(f"{k}={v}" for k, v in changes.items()), said, flush=True)
    if isinstance(made, str) or not made.fits:
      continue
    if best is None or _seconds_an_example(made) < _seconds_an_example(best):
      best, chosen = made, changes
  if best:
    print("best:", " ".join(f"{k}={v}" for k, v in chosen.items()))
    if _JSON.value:
      print(json.dumps({**dataclasses.asdict(best), "changes": chosen}))
    else:
      _print_table(best)
  return best


def _seconds_an_example(made) -> float:
  seconds = made.estimated_seconds_per_step
  # Without an estimate of time the least memory is best.
  return (seconds or made.peak_hbm_bytes_per_chip) / made.batch_size


def _integers(flag: str, values: list[str] | None) -> list[int]:
  try:
    return [int(value) for value in values or []]
  except ValueError as error:
    raise UserError(f"--{flag}={values}: must be whole numbers") from error


def _summary(made) -> str:
  if not made.fits:
    return made.excess()
  text = f"{made.peak_hbm_bytes_per_chip / 2**30:.2f} GiB"
  if made.estimated_seconds_per_step:
    text += f", {made.estimated_seconds_per_step:.3f} s, MFU {made.mfu:.1%}"
  return text


def _print_table(made) -> None:
  def gib(amount):
    return "unknown" if amount is None else f"{amount / 2**30:,.2f} GiB"

  def number(value, form, unit=""):
    return "unknown" if value is None else f"{value:{form}}{unit}"

  rows = [
    ("chips", f"{made.chips:,}"),
    ("batch", f"{made.batch_size:,}"),
    ("parameters", f"{made.parameters:,}"),
    ("state a chip", gib(made.state_bytes_per_chip)),
    ("peak memory a chip", gib(made.peak_hbm_bytes_per_chip)),
    ("memory of a chip", gib(made.hbm_bytes_per_chip)),
    ("FLOPs a step", f"{made.flops_per_step:.3g}"),
    *_own_rows(made, number),
    (
      "time a step, estimated",
      number(made.estimated_seconds_per_step, ".3f", " s"),
    ),
    ("MFU, estimated", number(made.mfu, ".1%")),
  ]
  for kind, amount in made.collectives.items():
    count, megabytes = amount["count"], amount["bytes"] / 2**20
    rows.append((kind, f"{count:,} times, {megabytes:,.1f} MiB"))
  rows += [
    ("steps", f"{made.steps:,}"),
    ("hours", number(made.hours, ",.1f")),
    ("chip-hours", number(made.chip_hours, ",.0f")),
    ("fits", "yes" if made.fits else "no"),
  ]
  for name, value in rows:
    print(f"{name:28} {value}")
  if made.estimates:
    print("\nEstimates, none measured:")
  for name, source in made.estimates.items():
    print(f"{name}: {source}.")


def _own_rows(made, number):
  """Returns what is known of GPUs alone, or of all others."""
  if made.estimates:
    seconds = number(made.least_seconds_per_step, ".3f", " s")
    return (
      ("FLOPs executed a step", f"{made.executed_flops_per_step:.3g}"),
      ("time a step, at least", seconds),
    )
  return (
    ("cycles a step", number(made.estimated_cycles_per_step, ",")),
    (
      "of these, at most passed over",
      number(made.optional_cycles_per_step, ","),
    ),
    ("kernels, not timed", number(made.kernel_calls_per_step, ",", " calls")),
    ("their cycles, at least", number(made.kernel_cycles_per_step, ",")),
  )
