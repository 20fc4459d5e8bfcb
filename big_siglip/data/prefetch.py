"""Hands batches from the threads that load them to the one that trains.

One thread of its own pulls the next batch while the last one is computed. Who
waits for it notices when nothing comes any more.
"""

from collections.abc import Callable, Iterator
import contextlib
import queue
import threading
import time
from typing import Any, TypeVar

from absl import logging

from big_siglip.errors import Stalled

_T = TypeVar("_T")
_CLOSING_SECONDS = 10.0


class Prefetcher(Iterator[_T]):
  """The items of an iterator, fetched by a thread; the first error ends it."""

  def __init__(
    self,
    items: Iterator[_T],
    *,
    stall_seconds: float = 0,
    what: Callable[[], str] = lambda: "",
    at_close: Callable[[], None] = lambda: None,
  ):
    """Starts to fetch.

    Args:
      items: with a method `close`.
      stall_seconds: how long `next` waits; 0: for ever.
      what: says, in a few words, what keeps `items` busy.
      at_close: ends what works for `items`.
    """
    self._items = items
    self._patience = min(stall_seconds, threading.TIMEOUT_MAX) or None
    self._what = what
    self._at_close = at_close
    self._queue: queue.Queue[tuple[_T | None, BaseException | None]]
    self._queue = queue.Queue(maxsize=1)
    self._closing = False
    self._stalled = False
    self._thread = threading.Thread(target=self._fetch, daemon=True)
    self._thread.start()

  def _fetch(self) -> None:
    while not self._closing:
      try:
        fetched = next(self._items), None
      except BaseException as error:  # For `next` to raise: StopIteration too.
        fetched = None, error
      self._queue.put(fetched)
      if fetched[1] is not None:
        return

  def __next__(self) -> _T:
    """Returns the next item.

    Raises:
      Stalled: it does not come.
    """
    try:
      item, error = self._queue.get(timeout=self._patience)
    except queue.Empty:
      self._stalled = True
      raise Stalled(
        f"no data for {self._patience:g} seconds"
        f" (config.data.stall_seconds){self._what()}"
      ) from None
    if error is not None:
      self._queue.put((None, error))  # For whoever asks again.
      raise error
    return item

  def close(self) -> None:
    """Stops fetching; leaves alone what is stuck."""
    self._closing = True
    self._forget()
    self._thread.join(0 if self._stalled else _CLOSING_SECONDS)
    # The thread may have had one more. Batches of worker processes lie in
    # shared memory, which is given back when nobody holds them.
    self._forget()
    if not self._thread.is_alive():
      self._items.close()
    self._at_close()

  def _forget(self) -> None:
    with contextlib.suppress(queue.Empty):
      self._queue.get_nowait()


class Watch:
  """Knows what each thread of this process loads, and since when."""

  def __init__(self, patience: float):
    """Warns, once each, of what takes longer than `patience` seconds; 0: no."""
    self._patience = patience
    self._reset()

  def _reset(self) -> None:
    self._lock = threading.Lock()
    self._busy: dict[int, tuple[float, Callable[[int], str], int]] = {}
    self._watching = False

  def __getstate__(self) -> dict[str, Any]:
    return {"patience": self._patience}  # A worker process watches its own.

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__init__(**state)

  def begin(self, what: Callable[[int], str], number: int) -> None:
    """Notes that this thread loads, from now on, what `what` calls `number`."""
    self._busy[threading.get_ident()] = (time.monotonic(), what, number)
    if self._patience and not self._watching:
      self._start()

  def end(self) -> None:
    """Notes that this thread loads nothing."""
    self._busy.pop(threading.get_ident(), None)

  def longest(self) -> str:
    """Returns what has been loading for longest, and for how long; or ""."""
    busy = list(self._busy.values())
    if not busy:
      return ""
    since, what, number = min(busy, key=lambda entry: entry[0])
    return f"{what(number)} for {time.monotonic() - since:.0f} seconds"

  def _start(self) -> None:
    with self._lock:
      if self._watching:
        return
      self._watching = True
    threading.Thread(target=self._look, daemon=True).start()

  def _look(self) -> None:
    told = set()
    while True:
      time.sleep(min(1.0, self._patience / 4))
      for thread, (since, what, number) in list(self._busy.items()):
        waited = time.monotonic() - since
        if waited > self._patience and (thread, since) not in told:
          told.add((thread, since))
          logging.warning(
            "loading %s for %.0f seconds so far", what(number), waited
          )
