"""Several processes, one program: how they find and wait for each other."""

from collections.abc import Iterator
import contextlib
import os
import sys

import jax
from jax.experimental import multihost_utils
import numpy as np

from big_siglip.errors import leave, Stalled, UserError

# A process that is silent for so long is taken for lost, and the others stop.
HEARTBEAT_SECONDS = 60
# Status of a process that stopped because another was lost (EX_TEMPFAIL): to
# start all of them again helps, as after a mistake (2) it would not.
LOST_STATUS = 75


def join() -> None:
  """Joins the other processes of the run; call before any device is used.

  On TPU pods, SLURM and Open MPI JAX finds the others by itself. Elsewhere the
  environment names them: JAX_COORDINATOR_ADDRESS (host:port of process 0),
  JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Raises:
    UserError: the environment does not say who the others are.
  """
  if jax.distributed.is_initialized():  # An earlier run of this process did it.
    return
  try:
    jax.distributed.initialize(
      num_processes=_integer("JAX_NUM_PROCESSES"),
      process_id=_integer("JAX_PROCESS_ID"),
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
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


def gather(text: str) -> list[str]:
  """Returns what every process gave, in their order; all must call it."""
  data = np.frombuffer(text.encode(), np.uint8)
  if jax.process_count() == 1:
    return [text]
  sizes = multihost_utils.process_allgather(np.array([data.size], np.int32))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded)
  return [
    row[: int(size)].tobytes().decode()
    for row, size in zip(rows, sizes.ravel(), strict=True)
  ]


@contextlib.contextmanager
def stopping_together() -> Iterator[None]:
  """Ends this process at once when another is lost, or its own data stall.

  Without the other nothing can be computed, and an orderly end would wait for
  it. What was saved stays saved.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, Stalled) as error:
    text = str(error)
    if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in text:
      raise
    reason = f"another process was lost ({text.splitlines()[0]})"
    reason = text if isinstance(error, Stalled) else reason
    print(
      f"error: process {jax.process_index()} of {jax.process_count()}: {reason}"
      "; the same command again goes on from the last checkpoint",
      file=sys.stderr,
    )
    leave(LOST_STATUS)
