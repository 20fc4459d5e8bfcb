"""What a program says on standard error while it works.

Nothing is said where nobody asks for it: a program works inside `speaking`, a
library call does not. Importing this module takes no time.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import sys
import threading
import time
from typing import Any

from big_siglip import bars, durations

_QUICK = 0.5  # Seconds, before which nothing that is over needs a word.
_SILENCE = 4.0  # Seconds, after which a line says that it is still at it.
_REFRESH = 1.0  # Seconds between two pictures of what a terminal shows.
# What is under way for longer than these seconds speaks as seldom as that: the
# log of a run of days is to be read.
_LONG, _SELDOM = 600.0, 30.0


@dataclasses.dataclass
class _Voice:
  """What this process says, and when it last did."""

  on: bool = False
  last: float = 0.0
  # What is under way, innermost last: that alone speaks.
  under_way: list[Any] = dataclasses.field(default_factory=list)
  lock: Any = dataclasses.field(default_factory=threading.RLock)


_voice = _Voice()


@contextlib.contextmanager
def speaking(on: bool = True) -> Iterator[None]:
  """Lets what is inside speak, or keeps it silent.

  Args:
    on: False: the block is silent, though what is around it may speak.
  """
  before, _voice.on = _voice.on, on
  if on and not before:
    _voice.last = time.monotonic()
  try:
    yield
  finally:
    _voice.on = before


def say(text: str) -> None:
  """Prints a line at once, above the bars that are shown."""
  if not _voice.on or sys.stderr is None:
    return
  with aside(), contextlib.suppress(OSError, ValueError):  # Nobody listens.
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def aside() -> Iterator[None]:
  """Takes the bars away while the block prints, to whichever stream."""
  with _voice.lock:
    if _voice.under_way and bars.on_terminal():
      import tqdm

      with tqdm.tqdm.external_write_mode(file=sys.stderr):
        yield
    else:
      yield
    _voice.last = time.monotonic()


def loading() -> contextlib.AbstractContextManager[None]:
  """Says that libraries are loaded, where that takes long."""
  return waiting("loading libraries", after=_SILENCE)


@contextlib.contextmanager
def waiting(
  what: str, key: str | None = None, *, after: float | None = None
) -> Iterator[None]:
  """Says what goes on, then again and again for how long, then how long.

  A thread speaks, so that what takes long need not: compiling lets it. Of what
  is over at once nothing is said.

  Args:
    what: such as "compiling the image tower".
    key: names what is done on this machine, as exactly as its duration depends
      on it. With a key the first line says how long it took last time.
    after: so many seconds of silence need no word; None: half a second.
  """
  if not _voice.on:
    yield
    return
  after = _QUICK if after is None else after
  before = durations.last(key) if key else None
  last = "" if before is None else f" ({in_words(before)} last time)"
  start = time.monotonic()

  def line() -> str:
    seconds = time.monotonic() - start
    words = f" {in_words(seconds)}" if seconds > 2 * _QUICK else ""
    return f"{what}{last} ...{words}"

  ended = "stopped after"
  try:
    bar = bars.still_line(after)
    # What is not to be told of at once waits for a silence, whosever.
    first = max(after - _silent(), _QUICK) if after > _QUICK else after
    with _under_way(line, bar, first):
      yield
    ended = "took"
  finally:
    seconds = time.monotonic() - start
    if seconds >= max(after, 1):
      say(f"{what}: {ended} {in_words(seconds)}")
    if key and ended == "took" and (seconds >= _QUICK or before is not None):
      durations.note(key, seconds)


class Progress:
  """How much of something is done, how fast, and how long the rest takes.

  A bar on a terminal. Elsewhere a line, "640 of 2000 images, 31.2 a second, 44
  s left", whenever nothing was said for some seconds. Threads may share one.
  """

  def __init__(
    self, total: int | None, unit: str, done: int = 0, shown: bool = True
  ):
    """Shows it until `close`, or until the end of a `with` block.

    Args:
      total: how much there is; None: nobody knows.
      unit: of what, in the plural: "images".
      done: how much was done before.
      shown: False: never.
    """
    self._total, self._unit, self._done = total, unit, done
    self._first: tuple[float, int] = time.monotonic(), done
    self._started = False
    self._bar = None
    self._stack = contextlib.ExitStack()
    if not (shown and _voice.on):
      return
    if bars.on_terminal():
      self._bar = bars.bar_class()(
        file=sys.stderr,
        initial=done,
        total=total,
        unit=f" {unit}",
        dynamic_ncols=True,
        # A notebook cannot go back up to the line of an outer bar.
        position=0 if bars.in_notebook() else None,
      )
    first = _REFRESH if self._bar else max(_SILENCE - _silent(), 0)
    self._stack.enter_context(_under_way(self.line, self._bar, first))

  def add(self, count: int) -> None:
    """Counts so many more as done."""
    with _voice.lock:
      self._done += count
      if not self._started:  # The first ones took the start's time as well.
        self._started = True
        self._first = time.monotonic(), self._done
    if self._bar is not None:
      self._bar.update(count)

  def note(self, **values: str) -> bool:
    """Shows values at the end of the bar; returns False where there is none."""
    if self._bar is None:
      return False
    self._bar.set_postfix(values)
    return True

  def line(self) -> str:
    """Returns how far it is, in words."""
    seconds, first = time.monotonic() - self._first[0], self._first[1]
    done, total = self._done, self._total
    words = f"{done} {self._unit}"
    if total is not None:
      words = f"{done} of {total} {self._unit}"
    if done == first or seconds <= 0:
      return words
    rate = (done - first) / seconds
    words += (
      f", {rate:.1f} a second" if rate >= 1 else f", one in {1 / rate:.1f} s"
    )
    if total is not None and total > done:
      words += f", {in_words((total - done) / rate)} left"
    return words

  def close(self) -> None:
    """Shows it no more; a bar stays as it is."""
    self._stack.close()

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def in_words(seconds: float) -> str:
  """Returns a duration as one says it: "44 s", "12 min", "3 h 20 min"."""
  if seconds < 99.5:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  if minutes < 100:
    return f"{minutes} min"
  return f"{minutes // 60} h {minutes % 60} min"


def _silent() -> float:
  """Returns the seconds since anything was said."""
  return time.monotonic() - _voice.last


@contextlib.contextmanager
def _under_way(
  line: Callable[[], str], bar: Any, first: float
) -> Iterator[None]:
  """Speaks from a thread as long as the block runs.

  Args:
    line: returns what to say.
    bar: the tqdm that a terminal shows, closed at the end; None: no terminal.
    first: seconds until the first line.
  """
  over, own, begin = threading.Event(), object(), time.monotonic()

  def refresh() -> None:
    pause = first
    while not over.wait(pause):
      pause = _REFRESH
      with contextlib.suppress(OSError, ValueError):
        if bar.bar_format == "{desc}":
          bar.set_description_str(line(), refresh=False)
        bar.refresh()

  def speak() -> None:
    pause, spoken = first, False
    while not over.wait(pause):
      with _voice.lock:
        is_long = time.monotonic() - begin > _LONG
        allowed = _SELDOM if is_long else _SILENCE
        due = not spoken or _silent() >= allowed
        if due and not over.is_set() and _voice.under_way[-1] is own:
          spoken = True
          say(line())
        pause = max(allowed - _silent(), _SILENCE / 20)

  _voice.under_way.append(own)
  speaker = threading.Thread(
    target=speak if bar is None else refresh, name="progress", daemon=True
  )
  speaker.start()
  try:
    yield
  finally:
    over.set()
    speaker.join()
    if bar is not None:
      bar.close()
    _voice.under_way.remove(own)
