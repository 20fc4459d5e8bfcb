"""From a source to batches, in an order that is a pure function of the seed.

`order.draws` says which example stands at each position of the endless training
stream. Global batch k holds positions [k B, (k + 1) B), of which process i of P
loads the i-th P-th. So nothing depends on the number of processes, workers or
threads, and one integer, the number of the next batch, is all there is to save,
for a mixture too.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import sys

from absl import logging
import grain

from big_siglip.data import fast_images, order, rows
from big_siglip.data.batch import Batch
from big_siglip.data.loader import LoadBatch
from big_siglip.data.mixture import Mixture
from big_siglip.data.prefetch import Prefetcher, Watch
from big_siglip.data.sources import Source
from big_siglip.data.views import View
from big_siglip.errors import RunStopped, UserError

MAX_RESTARTS = 3  # Times that lost worker processes are replaced.


class TrainBatches(Iterator[Batch]):
  """The endless batches of one process.

  Attributes:
    next_batch: number of the global batch that `next` returns; save it, and
      give it back as `start`, to go on from here.
  """

  def __init__(self, batches_from: Callable[[int], Prefetcher], start: int):
    """Starts to load; `batches_from` returns the batches from one on."""
    self.next_batch = start
    self._batches_from = batches_from
    self._batches = batches_from(start)
    self._restarts = 0

  def __next__(self) -> Batch:
    """Returns the next batch.

    Where a worker process was lost all are started again: nothing is lost with
    it, since batches are a function of their number.

    Raises:
      Stalled: no batch comes.
      RunStopped: nothing seems readable, or workers are lost again and again.
    """
    while True:
      try:
        batch = next(self._batches)
        break
      except RuntimeError as error:  # grain has no class of its own for it.
        if not str(error).startswith("Worker process was terminated"):
          raise
        self._restart(str(error).partition(". ")[0])
    self.next_batch += 1
    return batch

  def _restart(self, reason: str) -> None:
    self._restarts += 1
    if self._restarts > MAX_RESTARTS:
      raise RunStopped(
        f"batch {self.next_batch}: {reason}, for the {self._restarts}th time;"
        " workers that are killed may be out of memory (fewer"
        " config.data.num_workers need less)"
      )
    logging.warning(
      "batch %d: %s; starting the workers again", self.next_batch, reason
    )
    self._batches.close()
    self._batches = self._batches_from(self.next_batch)

  def close(self) -> None:
    """Stops the threads and worker processes."""
    self._batches.close()


def train_batches(
  source: Source,
  views: Sequence[View],
  *,
  batch_size: int,
  seed: int,
  start: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  num_threads: int = 8,
  decoder: str = "pillow",
  stall_seconds: float = 0,
) -> TrainBatches:
  """Returns this process's rows of the global batches `start`, `start` + 1 ...

  Args:
    source: the examples, or a `Mixture`; picklable if there are workers.
    views: make the arrays of a batch; all that one draws for an example comes
      from a stream of its own, which depends on (seed, epoch, index) alone.
    batch_size: over all processes.
    seed: in [0, 2**32).
    start: the first global batch to return.
    process_index: which rows of a global batch to load.
    process_count: by how many a global batch is shared.
    num_workers: processes that load, spawned (a program needs its `if __name__
      == "__main__"`); 0 loads in this one.
    num_threads: threads that load, in every worker.
    decoder: "pillow", exact, or "fast": see `fast_images`.
    stall_seconds: how long `next` waits for a batch; 0: for ever. What takes
      half as long to load is warned of, by name.

  Returns:
    Batches of what all views make, b = batch_size / process_count rows, and of
    `rows.METADATA`: "index" int64 [b]: the number of each row's example in
    `source`; "image_index" int64 [b]: that of the first example with the same
    image; "faults" int32 [b, K]: what happened before it was found, by
    `faults.COUNTERS`; "skipped" `faults.SKIPPED` [b, MAX_SKIPS]: in whose place
    it came.

  Raises:
    UserError: an empty source, or sizes that do not fit; what decodes is not
      installed.
    ValueError: two views make the same array.
    RunStopped: by `next`, when nothing seems readable.
  """
  _check(len(source), batch_size, process_index, process_count)
  if not 0 <= seed < 2**32:
    raise UserError(f"config.seed={seed}: must lie in [0, 2**32)")
  if decoder == "fast":
    fast_images.opencv()  # Else every image would find out for itself.
  count = batch_size // process_count
  place = rows.Placement(count, process_index, process_count)
  lengths, weights = (len(source),), (100,)
  if isinstance(source, Mixture):
    lengths, weights = source.lengths, source.weights
  draws = order.draws(lengths, weights, seed)
  watch = Watch(stall_seconds / 2)
  load_rows = rows.LoadRows(
    *(source, tuple(views), seed, place, draws, watch), fast=decoder == "fast"
  )
  load_rows.fields(start)  # Views that do not go together are told here.

  def batches_from(start: int) -> Prefetcher:
    load_batch = LoadBatch(load_rows, count, num_threads)
    # Whenever some threads have nothing left to do for a batch, they begin the
    # next; at most one more waits in memory.
    ahead = 2 if num_threads else 0
    batches = (
      grain.MapDataset.range(start, sys.maxsize)
      .map(load_batch)
      .to_iter_dataset(grain.ReadOptions(ahead, prefetch_buffer_size=ahead))
    )
    if num_workers:
      options = grain.MultiprocessingOptions(num_workers)
      batches = batches.mp_prefetch(options)
    where = ": a worker process is stuck; its warning above names the example"
    return Prefetcher(
      iter(batches),
      stall_seconds=stall_seconds,
      what=lambda: where if num_workers else f": {watch.longest()}",
      at_close=load_batch.close,
    )

  return TrainBatches(batches_from, start)


def eval_batches(
  source_length: int,
  load_one: Callable[[int], Batch],
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 8,
) -> Iterator[Batch]:
  """Yields every example once, in order; as many batches in every process.

  Args:
    source_length: number of examples.
    load_one: returns the arrays, of fixed shapes, of example i.
    batch_size: over all processes.
    process_index: which rows of a global batch to load.
    process_count: by how many a global batch is shared.
    num_threads: threads that load.

  Yields:
    Batches of what `load_one` returns and "mask" bool [b]: false for the zeros
    that fill up the last batch or stand for an image that cannot be decoded.
  """
  _check(source_length, batch_size, process_index, process_count)
  count = batch_size // process_count
  place = rows.Placement(count, process_index, process_count)
  load_row = rows.LoadEvalRow(source_length, load_one, place)
  num_batches = -(-source_length // batch_size)
  buffered = 2 * count if num_threads else 0
  options = grain.ReadOptions(num_threads, prefetch_buffer_size=buffered)
  batches = (
    grain.MapDataset.range(num_batches * count)
    .map(load_row)
    .to_iter_dataset(options)
    .batch(count, drop_remainder=True)
  )
  with contextlib.closing(iter(batches)) as iterator:
    yield from iterator


def _check(
  length: int, batch_size: int, process_index: int, process_count: int
) -> None:
  if length < 1:
    raise UserError("the data set is empty")
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f"config.batch_size={batch_size}: must be a positive multiple of the"
      f" {process_count} processes"
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f"process {process_index} of {process_count}")
