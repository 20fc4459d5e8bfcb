"""Notices that this machine is to be given back, so that the run can save."""

from collections.abc import Iterator
import contextlib
import os
import signal
import socket
import sys
import threading

from big_siglip.errors import leave

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED_STATUS = 130  # As shells have it for Ctrl-C.


class Interrupted(BaseException):
  """What can be left undone was interrupted: the run is to save and stop.

  No `Exception`, so that nothing on its way takes it for a failure.
  """


class StopSignal:
  """Becomes true once the run should save and stop (SIGTERM, or Ctrl-C).

  Compiling can take minutes, in which Python handles no signal: the main thread
  is not in Python. So a thread of its own hears of signals at once, says so,
  and ends the process where there is nothing to save. A second Ctrl-C ends it
  whatever there is; a second SIGTERM changes nothing.

  With several processes a signal to any of them stops all at one step: the
  JAX runtime takes SIGTERM over in `jax.distributed.initialize` and agrees on
  that step. None of them ends before the others hear of it.
  """

  def __init__(self, *, several: bool = False):
    """Starts to listen; call before `jax.distributed.initialize`.

    Args:
      several: whether other processes take part in the run.
    """
    self._several = several
    self._received = False
    self._trained = False  # Whether this process has something to save.
    self._interruptible = False
    self._before = {n: signal.signal(n, self._handle) for n in _SIGNALS}
    self._heard, told = socket.socketpair()
    told.setblocking(False)
    self._told = told
    self._fd_before = signal.set_wakeup_fd(told.fileno())
    threading.Thread(target=self._listen, daemon=True).start()

  def close(self) -> None:
    """Stops listening; handlers are again what they were."""
    signal.set_wakeup_fd(self._fd_before)
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._told.close()

  def _listen(self) -> None:
    """Hears of signals, whatever the main thread does."""
    heard, interrupts = 0, 0
    while number := self._heard.recv(1):
      if number[0] not in _SIGNALS:
        continue
      interrupts += number[0] == signal.SIGINT
      self._received = True
      heard += 1
      name = signal.Signals(number[0]).name
      if not self._trained and not self._several:
        _say(f"{name}: nothing was trained since the start; run again to go on")
        leave(0)
      if heard == 1:
        _say(f"{name}: will save and stop")
      elif interrupts > 1:
        _say(f"{name} again: stopped at once; run again to go on")
        leave(INTERRUPTED_STATUS)

  def _handle(self, signum, frame) -> None:
    """Runs in the main thread, as soon as that is in Python again."""
    del signum, frame
    self._received = True
    if self._interruptible:
      self._interruptible = False
      raise Interrupted

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """Lets a signal interrupt what is done inside, and can be left undone.

    Not with several processes: all would have to leave it at one place.

    Raises:
      Interrupted: a signal came, or had come before.
    """
    if self._several:
      yield
      return
    self._interruptible = True
    try:
      if self._received:
        raise Interrupted
      yield
    finally:
      self._interruptible = False

  def requested(self, step: int) -> bool:
    """Returns whether to stop after `step`; call once after every step."""
    self._trained = True
    if not self._several:
      return self._received
    from jax.experimental import multihost_utils

    if self._received:  # Ctrl-C, or before JAX listened: pass it on.
      self._received = False
      signal.raise_signal(signal.SIGTERM)
    return multihost_utils.reached_preemption_sync_point(step)


def _say(text: str) -> None:
  """Prints a line, though the main thread may be in the middle of another."""
  if sys.stdout is None:
    return  # The process was started with a closed output.
  with contextlib.suppress(OSError):  # Nobody may read it any more.
    os.write(sys.stdout.fileno(), f"{text}\n".encode())
