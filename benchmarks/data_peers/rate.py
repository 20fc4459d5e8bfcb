"""How fast batches come, and what they cost: the same for every pipeline."""

import os
import pathlib
import time

_TICKS = os.sysconf("SC_CLK_TCK")


def rate(batches, batch_size: int, seconds: float, first: int = 8):
  """Returns (images a second, milliseconds of CPU an image).

  The CPU time is that of this process and all below it: unlike the rate it
  hardly depends on what else the machine does.

  Args:
    batches: an iterator.
    batch_size: images in each.
    seconds: to measure for, at least, and for at least eight batches.
    first: batches to leave out.
  """
  for _ in range(first):
    next(batches)
  begin, spent, count = time.perf_counter(), cpu_seconds(), 0
  while count < 8 or time.perf_counter() - begin < seconds:
    next(batches)
    count += 1
  elapsed = time.perf_counter() - begin
  done = count * batch_size
  return done / elapsed, 1e3 * (cpu_seconds() - spent) / done


def cpu_seconds() -> float:
  """Returns the CPU time of this process and its descendants."""
  parents, times = {}, {}
  for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = file.read_text().rpartition(")")[2].split()
    except OSError:  # It has just ended.
      continue
    pid = int(file.parent.name)
    parents[pid] = int(fields[1])
    times[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
  return sum(times[pid] for pid in times if _below(pid, parents))


def _below(pid: int, parents: dict[int, int]) -> bool:
  while pid and pid != os.getpid():
    pid = parents.get(pid, 0)
  return pid == os.getpid()
