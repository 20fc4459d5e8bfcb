"""One row of a batch: which example it is, and what if that is no good."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import itertools
from typing import Any

from absl import logging
import numpy as np

from big_siglip.data import faults
from big_siglip.data.delivery import Watch
from big_siglip.data.mixture import image_index, locate
from big_siglip.data.order import Draws
from big_siglip.data.sources import Example, Source
from big_siglip.errors import BadExample, RunStopped

MAX_TRIES = 16  # Examples to try for one slot of a batch.
MAX_SKIPS = 4  # Examples left out that one slot can name.

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Placement:
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
class LoadRow:
  """Loads a row of a training batch, or another one if that is no good.

  Raises:
    RunStopped: `MAX_TRIES` examples in a row are no good.
  """

  source: Source
  load: Callable[[Example, np.random.Generator], Row]
  seed: int
  place: Placement
  draws: Draws
  watch: Watch

  def __call__(self, row: int) -> Row:
    """Returns arrays of row number `row`, and what `train_batches` adds."""
    draw = self.draws[self.place.position(int(row))]
    epoch, index = draw.epoch, draw.index
    skipped, substitutes = [], None
    faults.take_retries()  # Of a row that was never finished.
    for _ in range(MAX_TRIES):
      name = ""
      try:
        rng = np.random.default_rng([self.seed, epoch, index])
        with self.watch.loading(self._what(index)):
          example = self.source[index]
          name = example.name
          arrays = self.load(example, rng)
      except BadExample as e:
        skipped.append(faults.Fault.of(index, name, e))
        substitutes = substitutes or np.random.default_rng(
          [self.seed, draw.epoch, draw.index, 1]
        )
        index = draw.first + int(substitutes.integers(draw.count))
        continue
      told = faults.as_row(skipped, faults.take_retries(), MAX_SKIPS)
      numbers = {"index": index, "image_index": image_index(self.source, index)}
      return {**arrays, **{k: np.int64(v) for k, v in numbers.items()}, **told}
    raise RunStopped(
      f"{MAX_TRIES} examples tried in a row and none can be used; the last:"
      f" {skipped[-1].name}: {skipped[-1].reason}"
    )

  def _what(self, index: int) -> str:
    name, number = locate(self.source, index)
    return f"example {number} of {name or 'the data'}"


@dataclasses.dataclass(frozen=True)
class LoadRows:
  """Loads some rows that follow each other."""

  load_row: Callable[[int], Row]
  count: int

  def __call__(self, number: int) -> list[Row]:
    """Returns rows [number * count, (number + 1) * count)."""
    first = int(number) * self.count
    return [self.load_row(row) for row in range(first, first + self.count)]


def stack(parts: Sequence[Sequence[Row]]) -> Row:
  """Returns a batch of all rows of what some `LoadRows` returned."""
  loaded = list(itertools.chain.from_iterable(parts))
  return {name: np.stack([row[name] for row in loaded]) for name in loaded[0]}


@dataclasses.dataclass(frozen=True)
class LoadEvalRow:
  """Loads a row of an evaluation batch, or zeros."""

  length: int
  load_one: Callable[[int], Row]
  place: Placement

  def __call__(self, row: int) -> dict[str, Any]:
    """Returns what row number `row` holds, and "mask"."""
    index = self.place.position(int(row))
    if index < self.length:
      try:
        return {**self.load_one(index), "mask": np.True_}
      except BadExample as e:
        logging.warning("Evaluation leaves out example %d: %s", index, e)
    return {**self._zeros, "mask": np.False_}

  @functools.cached_property
  def _zeros(self) -> Row:
    for index in range(min(self.length, MAX_TRIES)):
      with contextlib.suppress(BadExample):
        example = self.load_one(index)
        return {name: np.zeros_like(value) for name, value in example.items()}
    raise RunStopped(f"none of the first {index + 1} examples can be used")
