"""How long a command is silent: stamps its output, reports the longest gaps.

python tests/gaps.py [--terminal] [--top=5] [--show] -- COMMAND ...

Prints the seconds until the first output and the longest silences, with what
was said before and after each, then the time of the whole and of the
processors. With --terminal the command believes that it talks to one.
"""

import argparse
import dataclasses
import fcntl
import os
import pty
import resource
import selectors
import struct
import subprocess
import sys
import termios
import time

_SIZE = struct.pack("HHHH", 24, 100, 0, 0)  # Rows, columns.


@dataclasses.dataclass(frozen=True)
class Recording:
  """What a command said, and when.

  Attributes:
    status: its exit status.
    said: (seconds since its start, text) of each piece of output.
    seconds: how long it ran.
    processor: seconds of all processors that it took.
  """

  status: int
  said: tuple[tuple[float, str], ...]
  seconds: float
  processor: float

  @property
  def text(self) -> str:
    """All that it said, on both streams."""
    return "".join(text for _, text in self.said)

  def gaps(self) -> list[tuple[float, float, str, str]]:
    """Returns (seconds, from when on, said before, said after), longest first.

    What a terminal is told to forget, colours and moves, counts as output.
    """
    stamps = [(0.0, "(start)"), *self.said, (self.seconds, "(end)")]
    pairs = zip(stamps, stamps[1:], strict=False)
    found = [(b[0] - a[0], a[0], _last(a[1]), _first(b[1])) for a, b in pairs]
    return sorted(found, reverse=True)


def record(command, *, terminal=False, show=False, **settings) -> Recording:
  """Runs a command to its end and returns what it said.

  Args:
    command: its words.
    terminal: both of its outputs are one; else two pipes.
    show: prints what it says as well.
    **settings: of `subprocess.Popen`, such as `cwd` and `env`.
  """
  if terminal:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, _SIZE)
    outputs, streams = [ours], {"stdout": theirs, "stderr": theirs}
  else:
    pipes = [os.pipe() for _ in range(2)]
    outputs = [read for read, _ in pipes]
    streams = {"stdout": pipes[0][1], "stderr": pipes[1][1]}
  used = _processor()
  start = time.monotonic()
  process = subprocess.Popen(
    command, stdin=subprocess.DEVNULL, **streams, **settings
  )
  for descriptor in set(streams.values()):
    os.close(descriptor)
  said = []
  for text in _pieces(outputs):
    said.append((time.monotonic() - start, text))
    if show:
      sys.stdout.write(text)
      sys.stdout.flush()
  status = process.wait()
  seconds = time.monotonic() - start
  return Recording(status, tuple(said), seconds, _processor() - used)


def _pieces(outputs):
  """Yields what comes, as soon as it does, until all outputs are closed."""
  selector = selectors.DefaultSelector()
  for output in outputs:
    selector.register(output, selectors.EVENT_READ)
  while selector.get_map():
    for key, _ in selector.select():
      try:
        data = os.read(key.fd, 2**16)
      except OSError:  # So a terminal ends.
        data = b""
      if data:
        yield data.decode(errors="replace")
      else:
        selector.unregister(key.fd)
        os.close(key.fd)


def _processor():
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def _last(text):
  return _lines(text)[-1]


def _first(text):
  return _lines(text)[0]


def _lines(text):
  lines = text.replace("\r", "\n").replace("\x1b[A", "").splitlines()
  return [line.strip() for line in lines if line.strip()] or [""]


def main():
  """Prints the report; exits as the command does."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--terminal", action="store_true")
  parser.add_argument("--show", action="store_true")
  parser.add_argument("--top", type=int, default=5)
  parser.add_argument("command", nargs="+")
  arguments = parser.parse_args()
  made = record(
    arguments.command, terminal=arguments.terminal, show=arguments.show
  )
  first = made.said[0][0] if made.said else made.seconds
  print(f"first output after {first:.1f} s; the longest silences:")
  for seconds, begin, before, after in made.gaps()[: arguments.top]:
    print(f"{seconds:6.1f} s from {begin:.1f} s: {before!r} ... {after!r}")
  print(
    f"{made.seconds:.1f} s, {made.processor:.1f} s of the processors, load "
    f"{os.getloadavg()[0]:.1f}, exit {made.status}"
  )
  sys.exit(made.status)


if __name__ == "__main__":
  main()
