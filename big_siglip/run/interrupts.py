"""Ctrl-C in a process that is not ours: a notebook, somebody's own program."""

from collections.abc import Iterator
import contextlib
import signal
import threading

from big_siglip.run.preemption import Interrupted
from big_siglip.run.terminal import say


class Interrupts:
  """Becomes true once the run should save and stop: a first Ctrl-C.

  Does what `preemption.StopSignal` does for a program, but never ends the
  process. Where nothing was trained yet, and at a second Ctrl-C, it is a
  KeyboardInterrupt. SIGTERM is left to whoever owns the process. Python hears
  of signals in the main thread alone: in any other one nothing is listened to.
  """

  def __init__(self):
    """Starts to listen."""
    self._received = False
    self._trained = False
    self._interruptible = False
    self._listens = threading.current_thread() is threading.main_thread()
    if self._listens:
      self._before = signal.signal(signal.SIGINT, self._handle)

  def close(self) -> None:
    """Stops listening; the handler is again what it was."""
    if self._listens:
      signal.signal(signal.SIGINT, self._before)

  def _handle(self, signum, frame) -> None:
    del signum, frame
    if self._received or not self._trained:
      raise KeyboardInterrupt
    self._received = True
    say("Ctrl-C: will save and stop; again: stops at once")
    if self._interruptible:
      self._interruptible = False
      raise Interrupted

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """Lets Ctrl-C interrupt what is done inside, and can be left undone.

    Raises:
      Interrupted: it came, or had come before.
    """
    self._interruptible = True
    try:
      if self._received:
        raise Interrupted
      yield
    finally:
      self._interruptible = False

  def requested(self, step: int) -> bool:
    """Returns whether to stop after `step`; call once after every step."""
    del step
    self._trained = True
    return self._received
