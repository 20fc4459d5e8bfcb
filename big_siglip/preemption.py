"""Notices that this machine is to be given back, so that the run can save."""

import signal

import jax
from jax.experimental import multihost_utils


class StopSignal:
  """Becomes true once the run should save and stop (SIGTERM, or Ctrl-C).

  With several processes a SIGTERM to any of them stops all at one step: the
  JAX runtime takes the signal over in `jax.distributed.initialize` and agrees
  on that step.
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
    print(f"{signal.Signals(signum).name}: saving, then stopping", flush=True)

  def requested(self, step: int) -> bool:
    """Returns whether to stop after `step`; call once after every step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._received
