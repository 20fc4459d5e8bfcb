"""The rows of a batch: which examples they are, and what if one is no good."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

from absl import logging
import numpy as np

from big_siglip.data import faults
from big_siglip.data.batch import (
  Batch,
  Field,
  Fields,
  rows_of,
  union,
  zeros_like,
)
from big_siglip.data.mixture import image_index, locate
from big_siglip.data.order import Draw, Draws
from big_siglip.data.prefetch import Watch
from big_siglip.data.sources import Example, Source
from big_siglip.data.views import fill, View
from big_siglip.errors import BadExample, RunStopped

MAX_TRIES = 16  # Examples to try for one slot of a batch.
MAX_SKIPS = 4  # Examples left out that one slot can name.
_BYTES_AT_ONCE = 2**23  # Of encoded images that a thread holds.

Row = dict[str, np.ndarray]

# What the loader itself says of each row, beside what views make of it; see
# `pipeline.train_batches`.
METADATA: Fields = {
  "index": Field((), "int64"),
  "image_index": Field((), "int64"),
  "faults": Field((len(faults.COUNTERS),), "int32"),
  "skipped": Field((MAX_SKIPS,), faults.SKIPPED),
}


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


@dataclasses.dataclass
class _Slot:
  """A row to be filled: by the example drawn, or by another if that is bad.

  Attributes:
    seed: of the run.
    draw: what stands there.
    index: the example to try.
    skipped: those tried before.
    retried: reads that went well at a later try.
  """

  seed: int
  draw: Draw
  index: int
  skipped: list[faults.Fault] = dataclasses.field(default_factory=list)
  retried: int = 0

  def skip(self, name: str, error: BadExample) -> None:
    """Turns to another example.

    Raises:
      RunStopped: `MAX_TRIES` examples are no good.
    """
    self.skipped.append(faults.Fault.of(self.index, name, error))
    if len(self.skipped) == MAX_TRIES:
      raise RunStopped(
        f"{MAX_TRIES} examples tried in a row and none can be used; the last:"
        f" {self.skipped[-1].name}: {self.skipped[-1].reason}"
      )
    self.index = self.draw.first + int(self._others.integers(self.draw.count))

  @functools.cached_property
  def _others(self) -> np.random.Generator:
    return np.random.default_rng(
      [self.seed, self.draw.epoch, self.draw.index, 1]
    )


@dataclasses.dataclass(frozen=True)
class LoadRows:
  """Loads training rows that follow each other, all of them good.

  Raises:
    RunStopped: `MAX_TRIES` examples for one of them are no good.
  """

  source: Source
  views: tuple[View, ...]
  seed: int
  place: Placement
  draws: Draws
  watch: Watch
  fast: bool = False

  def fields(self, batch: int) -> Fields:
    """Returns what a global batch holds: of all views, and `METADATA`."""
    return union([*(view.fields(batch) for view in self.views), METADATA])

  def __call__(self, first: int, out: Batch) -> None:
    """Writes rows to arrays of them, as `fields` says.

    A decoder drives all else out of a processor's caches. So every step is
    taken for all rows before the next: the small ones cost half as much.

    Args:
      first: number of the first row.
      out: one array [rows, ...] for each field.
    """
    try:
      self._rows(first, out)
    finally:
      self.watch.end()

  def _rows(self, first: int, out: Batch) -> None:
    faults.take_retries()  # Of rows that were never finished.
    batch, count = first // self.place.rows, len(out["index"])
    slots = [
      _Slot(self.seed, draw, draw.index)
      for draw in map(self._draw, range(first, first + count))
    ]
    done = 0
    while done < count:
      examples = self._read_some(slots[done:])
      end = done + len(examples)
      here = rows_of(out, slice(done, end))
      self._fill(batch, slots[done:end], examples, here)
      done = end

  def _read_some(self, slots: Sequence[_Slot]) -> list[Example]:
    """Returns the first examples, as many as may be held."""
    examples, held = [], 0
    for slot in slots:
      examples.append(example := self._read(slot))
      held += len(example.image)
      if held >= _BYTES_AT_ONCE:
        break
    return examples

  def _fill(
    self,
    batch: int,
    slots: Sequence[_Slot],
    examples: Sequence[Example],
    out: Batch,
  ) -> None:
    """Writes some rows."""
    bad = self._view(batch, slots, examples, out)
    for i, error in bad.items():
      row = rows_of(out, slice(i, i + 1))
      self._replace(batch, slots[i], examples[i], error, row)
    indices = [slot.index for slot in slots]
    out["index"][:] = indices
    out["image_index"][:] = [image_index(self.source, i) for i in indices]
    found = [(slot.skipped, slot.retried) for slot in slots]
    for name, value in faults.as_rows(found, MAX_SKIPS).items():
      out[name][:] = value

  def _draw(self, row: int) -> Draw:
    return self.draws[self.place.position(row)]

  def _read(self, slot: _Slot) -> Example:
    """Returns the slot's example, or the first one that can be read."""
    while True:
      self.watch.begin(self._name, slot.index)
      try:
        return self.source[slot.index]
      except BadExample as error:
        slot.skip("", error)
      finally:
        slot.retried += faults.take_retries()

  def _view(
    self,
    batch: int,
    slots: Sequence[_Slot],
    examples: Sequence[Example],
    out: Batch,
  ) -> dict[int, BadExample]:
    seeds = [(self.seed, slot.draw.epoch, slot.index) for slot in slots]
    more = f" and {len(slots) - 1} more" if len(slots) > 1 else ""
    self.watch.begin(lambda index: self._name(index) + more, slots[0].index)
    return fill(self.views, batch, examples, seeds, out, fast=self.fast)

  def _replace(
    self,
    batch: int,
    slot: _Slot,
    example: Example,
    error: BadExample,
    out: Batch,
  ) -> None:
    """Writes the one row of the first example that is good after all."""
    bad = {0: error}
    while bad:
      slot.skip(example.name, bad[0])
      example = self._read(slot)
      bad = self._view(batch, [slot], [example], out)

  def _name(self, index: int) -> str:
    name, number = locate(self.source, index)
    return f"example {number} of {name or 'the data'}"


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
        said = f"{e.name}: {e}" if e.name else e
        logging.warning("Evaluation leaves out example %d: %s", index, said)
    return {**self._zeros, "mask": np.False_}

  @functools.cached_property
  def _zeros(self) -> Row:
    tries = min(self.length, MAX_TRIES)
    for index in range(tries):
      with contextlib.suppress(BadExample):
        example = self.load_one(index)
        return {name: zeros_like(value) for name, value in example.items()}
    raise RunStopped(f"none of the first {tries} examples can be used")
