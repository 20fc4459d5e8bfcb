"""Whole training batches, loaded by threads."""

import concurrent.futures
import multiprocessing
import os
import threading
from typing import Any

from big_siglip.data.batch import Batch, empty, rows_of
from big_siglip.data.rows import LoadRows

_ROWS_AT_ONCE = 64  # That a thread loads.


class LoadBatch:
  """Loads whole batches, of which each thread takes some rows at a time."""

  def __init__(self, load_rows: LoadRows, count: int, num_threads: int):
    """Loads batches of `count` rows; without threads, in the caller's."""
    self._load_rows = load_rows
    self._count = count
    self._num_threads = num_threads
    self._pool = _pool(num_threads)
    # Two batches are under way, and no thread shall be left without.
    most = max(1, min(_ROWS_AT_ONCE, 2 * count // max(num_threads, 1), count))
    self._part = max(n for n in range(1, most + 1) if count % n == 0)

  def __call__(self, number: int) -> Batch:
    """Returns this process's rows of global batch `number`."""
    number = int(number)
    batch = empty(self._load_rows.fields(number), self._count)

    def load(first: int) -> None:
      rows = rows_of(batch, slice(first, first + self._part))
      self._load_rows(number * self._count + first, rows)

    run = self._pool.map if self._pool else map
    for _ in run(load, range(0, self._count, self._part)):
      pass
    return batch

  def close(self) -> None:
    """Lets go of the threads; each still finishes the rows it has begun."""
    if self._pool:
      self._pool.shutdown(wait=False, cancel_futures=True)

  def __getstate__(self) -> dict[str, Any]:
    return vars(self) | {"_pool": None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._pool = _pool(self._num_threads)
    if trainer := multiprocessing.parent_process():
      threading.Thread(target=_end_with, args=[trainer], daemon=True).start()


def _end_with(trainer) -> None:
  """Ends this worker process when the one that trains was killed.

  It would wait for ever for somebody to take its batches, and keep its memory.
  """
  trainer.join()
  os._exit(1)


def _pool(num_threads: int) -> concurrent.futures.Executor | None:
  """Returns threads, which start when there is something to do; 0: none."""
  if not num_threads:
    return None
  return concurrent.futures.ThreadPoolExecutor(num_threads)
