"""A word now and then while something takes long."""

from collections.abc import Iterator
import contextlib
import sys
import threading
import time
from typing import TextIO


@contextlib.contextmanager
def told(
  what: str, every: float = 10.0, stream: TextIO | None = None
) -> Iterator[None]:
  """Says what goes on, then for how long, then how long it took.

  A thread speaks, so that what takes long need not: compiling lets it.

  Args:
    what: such as "compiling for v5e:16x16".
    every: seconds between two words. On a terminal one line is kept up to date.
    stream: where to; None: standard error, which leaves output to the answer.
  """
  out = stream or sys.stderr
  live = out.isatty()
  start = time.monotonic()
  over = threading.Event()

  def say(word: str, last: bool = False) -> None:
    with contextlib.suppress(OSError):  # Nobody listens any more.
      begin, end = ("\r", "\n" if last else "") if live else ("", "\n")
      out.write(f"{begin}{what}{word}{end}")
      out.flush()

  def speak() -> None:
    while not over.wait(1.0 if live else every):
      say(f" ... {time.monotonic() - start:.0f} s")

  say(" ...")
  speaker = threading.Thread(target=speak, name="told", daemon=True)
  speaker.start()
  ended = "stopped after"
  try:
    yield
    ended = "took"
  finally:
    over.set()
    speaker.join()
    say(f": {ended} {time.monotonic() - start:.0f} s", last=True)
