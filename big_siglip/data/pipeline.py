"""From a source to batches, in an order that is a pure function of the seed.

`order.draws` says which example stands at each position of the endless training
stream. Global batch k holds positions [k B, (k + 1) B), of which process i of P
loads the i-th P-th. So nothing depends on the number of processes, workers or
threads, and one integer, the number of the next batch, is all there is to save,
for a mixture too.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import sys
from typing import Any

from absl import logging
import grain
import numpy as np

from big_siglip.data import faults, order
from big_siglip.data.mixture import Mixture
from big_siglip.data.sources import Example, Source
from big_siglip.errors import BadExample, RunStopped, UserError

MAX_TRIES = 16  # Examples to try for one slot of a batch.
MAX_SKIPS = 4  # Examples left out that one slot can name.

Batch = dict[str, np.ndarray]


class TrainBatches(Iterator[Batch]):
  """The endless batches of one process.

  Attributes:
    next_batch: number of the global batch that `next` returns; save it, and
      give it back as `start`, to go on from here.
  """

  def __init__(self, batches: Iterator[Batch], start: int):
    self.next_batch = start
    self._batches = batches

  def __next__(self) -> Batch:
    batch = next(self._batches)
    self.next_batch += 1
    return batch

  def close(self) -> None:
    """Stops the threads and worker processes."""
    self._batches.close()


def train_batches(
  source: Source,
  load: Callable[[Example, np.random.Generator], Batch],
  *,
  batch_size: int,
  seed: int,
  start: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  num_threads: int = 8,
) -> TrainBatches:
  """Returns this process's rows of the global batches `start`, `start` + 1 ...

  Args:
    source: the examples, or a `Mixture`; picklable if there are workers.
    load: turns an example into arrays of fixed shapes; all it draws comes from
      its rng, which depends on (seed, epoch, index) alone.
    batch_size: over all processes.
    seed: in [0, 2**32).
    start: the first global batch to return.
    process_index: which rows of a global batch to load.
    process_count: by how many a global batch is shared.
    num_workers: processes that load, spawned (a program needs its `if __name__
      == "__main__"`); 0 loads in this one.
    num_threads: threads that load, in every worker.

  Returns:
    Batches of what `load` returns, b = batch_size / process_count rows, and
    "index" int64 [b]: the number of each row's example in `source`; "faults"
    int32 [b, K]: what happened before it was found, by `faults.COUNTERS`;
    "skipped" `faults.SKIPPED` [b, MAX_SKIPS]: in whose place it came.

  Raises:
    UserError: an empty source, or sizes that do not fit.
    RunStopped: by `next`, when nothing seems readable.
  """
  _check(len(source), batch_size, process_index, process_count)
  if not 0 <= seed < 2**32:
    raise UserError(f"config.seed={seed}: must lie in [0, 2**32)")
  rows = batch_size // process_count
  place = _Placement(rows, process_index, process_count)
  lengths, weights = (len(source),), (100,)
  if isinstance(source, Mixture):
    lengths, weights = source.lengths, source.weights
  draws = order.draws(lengths, weights, seed)
  load_row = _LoadRow(source, load, seed, place, draws)
  examples = grain.MapDataset.range(start * rows, sys.maxsize).map(load_row)
  if num_workers:
    # Workers take turns, so each must return whole batches.
    options = grain.ReadOptions(num_threads, prefetch_buffer_size=num_threads)
    batches = (
      examples.batch(rows, drop_remainder=True)
      .to_iter_dataset(options)
      .mp_prefetch(grain.MultiprocessingOptions(num_workers))
    )
  else:
    # All threads work on the next batch; at most one more waits in memory.
    buffered = 2 * rows if num_threads else 0
    options = grain.ReadOptions(num_threads, prefetch_buffer_size=buffered)
    batches = examples.to_iter_dataset(options).batch(rows, drop_remainder=True)
  return TrainBatches(iter(batches), start)


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
  rows = batch_size // process_count
  place = _Placement(rows, process_index, process_count)
  load_row = _LoadEvalRow(source_length, load_one, place)
  num_batches = -(-source_length // batch_size)
  buffered = 2 * rows if num_threads else 0
  options = grain.ReadOptions(num_threads, prefetch_buffer_size=buffered)
  batches = (
    grain.MapDataset.range(num_batches * rows)
    .map(load_row)
    .to_iter_dataset(options)
    .batch(rows, drop_remainder=True)
  )
  with contextlib.closing(iter(batches)) as iterator:
    yield from iterator


@dataclasses.dataclass(frozen=True)
class _Placement:
  """Where the rows of one process lie in the stream of global batches."""

  rows: int  # Per process and batch.
  process_index: int
  process_count: int

  def position(self, row: int) -> int:
    """Returns the global position of this process's row number `row`."""
    batch, row = divmod(row, self.rows)
    slot = batch * self.process_count + self.process_index
    return slot * self.rows + row


@dataclasses.dataclass(frozen=True)
class _LoadRow:
  """Loads a row of a training batch, or another one if that is no good."""

  source: Source
  load: Callable[[Example, np.random.Generator], Batch]
  seed: int
  place: _Placement
  draws: grain.MapDataset  # Position -> Draw.

  def __call__(self, row: int) -> Batch:
    draw = self.draws[self.place.position(int(row))]
    epoch, index = draw.epoch, draw.index
    substitutes = np.random.default_rng([self.seed, epoch, index, 1])
    skipped = []
    faults.take_retries()  # Of a row that was never finished.
    for _ in range(MAX_TRIES):
      name = ""
      try:
        rng = np.random.default_rng([self.seed, epoch, index])
        example = self.source[index]
        name = example.name
        arrays = self.load(example, rng)
      except BadExample as e:
        skipped.append(faults.Fault.of(index, name, e))
        index = draw.first + int(substitutes.integers(draw.count))
        continue
      told = faults.as_row(skipped, faults.take_retries(), MAX_SKIPS)
      return {**arrays, "index": np.int64(index), **told}
    raise RunStopped(
      f"{MAX_TRIES} examples tried in a row and none can be used; the last:"
      f" {skipped[-1].name}: {skipped[-1].reason}"
    )


@dataclasses.dataclass(frozen=True)
class _LoadEvalRow:
  """Loads a row of an evaluation batch, or zeros."""

  length: int
  load_one: Callable[[int], Batch]
  place: _Placement

  def __call__(self, row: int) -> dict[str, Any]:
    index = self.place.position(int(row))
    if index < self.length:
      try:
        return {**self.load_one(index), "mask": np.True_}
      except BadExample as e:
        logging.warning("Evaluation leaves out example %d: %s", index, e)
    return {**self._zeros, "mask": np.False_}

  @functools.cached_property
  def _zeros(self) -> Batch:
    for index in range(min(self.length, MAX_TRIES)):
      with contextlib.suppress(BadExample):
        example = self.load_one(index)
        return {name: np.zeros_like(value) for name, value in example.items()}
    raise RunStopped(f"none of the first {index + 1} examples can be used")


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
