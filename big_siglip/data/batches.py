"""Whole training batches, loaded by threads."""

import concurrent.futures
import multiprocessing
import os
import threading
from typing import Any

import numpy as np

from big_siglip.data.rows import Batch, joined, LoadRows

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
    self._like: Batch = {}  # One row, of no meaning, once they are known.

  def __call__(self, number: int) -> Batch:
    """Returns batch `number` of this process."""
    start = int(number) * self._count
    firsts = range(0, self._count, self._part)
    batch = {
      name: np.empty((self._count, *row.shape), row.dtype)
      for name, row in self._like.items()
    }

    def load(first: int) -> Batch:
      out = {k: v[first : first + self._part] for k, v in batch.items()}
      return self._load_rows(start + first, self._part, out or None)

    run = self._pool.map if self._pool else map
    parts = list(run(load, firsts))
    if not batch:
      batch = joined(parts)
      self._like = {name: value[0].copy() for name, value in batch.items()}
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
