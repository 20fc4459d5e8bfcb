"""What the processes that measure have in common.

Each says what it found in JSON objects, a line each, so that what it said
stays if it is ended.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import json
import statistics
import time
from typing import Any

WARM_UP = 3  # Steps.
_LEAST, _MOST = 5, 50  # Steps that are timed.


def say(**row: Any) -> None:
  """Prints a row."""
  print(json.dumps(row), flush=True)


def times(run: Callable[[], Any], seconds: float) -> list[float]:
  """Returns how long `run` takes each time, warmed up.

  Args:
    run: which ends when its work is done on the device.
    seconds: to spend on it, warming up included; at least `_LEAST` calls.
  """
  start = time.perf_counter()
  for _ in range(WARM_UP):
    run()
  taken: list[float] = []
  while len(taken) < _LEAST or (
    len(taken) < _MOST and time.perf_counter() - start < seconds
  ):
    before = time.perf_counter()
    run()
    taken.append(time.perf_counter() - before)
  return taken


def summary(taken: Sequence[float]) -> dict[str, Any]:
  """Returns the fields of a row that say how long a step took."""
  return {
    "seconds": statistics.median(taken),
    "fastest": min(taken),
    "slowest": max(taken),
    "steps": len(taken),
  }


def halves(batch_size: int) -> Iterator[int]:
  """Yields a batch size, half of it, and so on."""
  while batch_size:
    yield batch_size
    batch_size //= 2


@contextlib.contextmanager
def refusals(**row: Any) -> Iterator[None]:
  """Says as a row, with `why`, what a library refuses to do."""
  try:
    yield
  except (NotImplementedError, RuntimeError, ValueError) as error:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    say(**row, skipped=lines[0][:300])
