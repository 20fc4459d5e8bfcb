"""Trains a SigLIP, and resumes where it stopped.

big-siglip train --config=configs/digits.py --workdir=runs/digits
big-siglip train --config=configs/so400m.py:batch_size=4096 \
  --config.mesh.fsdp=8 --workdir=gs://b/run --dry_run
"""

from absl import flags, logging
from ml_collections import ConfigDict

from big_siglip import progress
from big_siglip.command_line import parse_flags
from big_siglip.errors import exit_on_error, UserError
from big_siglip.run.preemption import StopSignal

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder for checkpoints, metrics and events, local or gs://."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run",
  False,
  "Print config, parameters, sharding, step count and what a start would say.",
)


def parse(argv: list[str]) -> ConfigDict:
  """Returns the config that the flags ask for."""
  with exit_on_error():
    config = parse_flags(argv)
    if not (_WORKDIR.value or _DRY_RUN.value):
      raise UserError("--workdir=DIR must be given (or --dry_run)")
    return config


def main(config: ConfigDict) -> None:
  """Trains, or prints what would be trained."""
  logging.set_verbosity(logging.WARNING)
  if not _DRY_RUN.value:
    _train(config)
    return
  # Imported late: a mistake in the flags is told before JAX is loaded.
  with progress.loading():
    from big_siglip.plan import dry_run

  with exit_on_error():
    dry_run.run(config, _WORKDIR.value)


def _train(config: ConfigDict) -> None:
  # Never closed: a second SIGTERM may come while the process ends.
  stop = StopSignal(several=config.distributed)
  with exit_on_error():
    # Imported late, and after the signals are heard: it takes seconds.
    with progress.loading():
      from big_siglip import loop, platforms

      platforms.prepare(keep=not config.distributed)
    loop.train(config, _WORKDIR.value, stop)
