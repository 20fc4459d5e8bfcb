"""Examples are drawn by several processes: each takes milliseconds."""

from collections.abc import Iterator
import os
import pathlib
import pickle
import signal
import subprocess
import sys
from types import ModuleType

from big_siglip import progress
from big_siglip.datasets import scenes_draw, scenes_wide
from big_siglip.datasets.scenes_draw import Painted

_FEW = 1_000  # That many are soon drawn by one process.
_MOST = 4  # Processes that draw as fast as one can write.
_DRAWS = {module.__name__: module for module in (scenes_draw, scenes_wide)}


def train_examples(
  draws: ModuleType, count: int, processes: int | None = None
) -> Iterator[Painted]:
  """Yields `draws.train_example(i)` for i from 0 to `count` - 1.

  The processes are programs of their own: a copy of one that has started JAX
  may hang, and `multiprocessing` would run the caller's script again.

  Args:
    draws: `scenes_draw` or `scenes_wide`.
    count: of examples.
    processes: that draw; None: as many as there are cores, within reason.

  Raises:
    RuntimeError: one of them ended before it was done.
  """
  if processes is None:
    many = count > _FEW and sys.executable
    processes = min(os.cpu_count() or 1, _MOST) if many else 1
  if processes == 1:
    yield from map(draws.train_example, range(count))
    return
  root = os.fspath(pathlib.Path(__file__).resolve().parents[2])
  paths = root, *filter(None, [os.environ.get("PYTHONPATH")])
  command = sys.executable, "-P", "-m", __name__, draws.__name__, f"{count}"
  workers = [
    subprocess.Popen(
      (*command, f"{first}", f"{processes}"),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    for first in range(processes)
  ]
  try:
    for index in range(count):
      yield Painted(*_next(workers[index % processes]))
  finally:
    for worker in workers:
      worker.kill()
      worker.communicate()


def shown(examples: Iterator[Painted], count: int) -> Iterator[Painted]:
  """Yields the examples, and says how far it is."""
  with progress.Progress(count, "scenes drawn") as show:
    for example in examples:
      yield example
      show.add(1)


def _next(worker):
  try:
    return pickle.load(worker.stdout)  # Our own process wrote it.
  except (EOFError, pickle.UnpicklingError):  # Perhaps in the middle of one.
    status = worker.wait()
    raise RuntimeError(f"a process that draws ended: {status}") from None


def _draw(name: str, count: int, first: int, step: int) -> None:
  """Writes every `step`th example to standard output."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever reads is told, too.
  draws = _DRAWS[name]
  try:
    for index in range(first, count, step):
      pickle.dump(tuple(draws.train_example(index)), sys.stdout.buffer)
    sys.stdout.flush()
  except BrokenPipeError:  # Nobody reads any more.
    os._exit(0)


if __name__ == "__main__":
  _draw(sys.argv[1], *map(int, sys.argv[2:]))
