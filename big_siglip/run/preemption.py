"""Notices that this machine is to be given back, so that the run can save."""

import os
import signal
import sys

import jax
from jax.experimental import multihost_utils


class StopSignal:
  """Becomes true once the run should save and stop (SIGTERM, or Ctrl-C).

  With several processes a signal to any of them stops all at one step: the
  JAX runtime takes SIGTERM over in `jax.distributed.initialize` and agrees on
  that step.
  """

  def __init__(self):
    """Starts to listen; call before `jax.distributed.initialize`."""
    self._received = False
    signal.signal(signal.SIGTERM, self._handle)
    signal.signal(signal.SIGINT, self._handle)

  def _handle(self, signum, frame) -> None:
    del frame
    self._received = True
    # A second Ctrl-C does not wait.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not `print`: the signal may have come in the middle of another one.
    name = signal.Signals(signum).name
    os.write(sys.stdout.fileno(), f"{name}: will save and stop\n".encode())

  def requested(self, step: int) -> bool:
    """Returns whether to stop after `step`; call once after every step."""
    if not jax.distributed.is_initialized():
      return self._received
    if self._received:  # Ctrl-C, or before JAX listened: pass it on.
      self._received = False
      signal.raise_signal(signal.SIGTERM)
    return multihost_utils.reached_preemption_sync_point(step)
