"""Several processes, one program: how they find and wait for each other."""

import os

import jax
from jax.experimental import multihost_utils

from big_siglip.errors import UserError


def join() -> None:
  """Joins the other processes of the run; call before any device is used.

  On TPU pods, SLURM and Open MPI JAX finds the others by itself. Elsewhere the
  environment names them: JAX_COORDINATOR_ADDRESS (host:port of process 0),
  JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Raises:
    UserError: the environment does not say who the others are.
  """
  try:
    jax.distributed.initialize(
      num_processes=_integer("JAX_NUM_PROCESSES"),
      process_id=_integer("JAX_PROCESS_ID"),
    )
  except ValueError as error:
    raise UserError(
      f"config.distributed=True: {error} Set JAX_COORDINATOR_ADDRESS, "
      "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start under SLURM or on a pod"
    ) from error


def _integer(name: str) -> int | None:
  value = os.environ.get(name)
  if value is not None and not value.isdecimal():
    raise UserError(f"{name}={value!r}: must be a whole number")
  return None if value is None else int(value)


def wait_for_all(name: str) -> None:
  """Returns once every process has come here; `name` is the same in all."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
