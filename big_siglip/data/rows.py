"""The rows of a batch: which examples they are, and what if one is no good."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
from typing import Any, Protocol

from absl import logging
import numpy as np

from big_siglip.data import faults
from big_siglip.data.delivery import Watch
from big_siglip.data.mixture import image_index, locate
from big_siglip.data.order import Draw, Draws
from big_siglip.data.sources import Example, Source
from big_siglip.errors import BadExample, RunStopped

MAX_TRIES = 16  # Examples to try for one slot of a batch.
MAX_SKIPS = 4  # Examples left out that one slot can name.
_BYTES_AT_ONCE = 2**23  # Of encoded images that a thread holds.

Row = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]
Seed = tuple[int, ...]  # For `np.random.default_rng`.


class Load(Protocol):
  """From examples to arrays."""

  def __call__(
    self,
    examples: Sequence[Example],
    seeds: Sequence[Seed],
    out: Batch | None = None,
  ) -> tuple[Batch, dict[int, BadExample]]:
    """Returns the rows of n examples, and what is wrong with some of them.

    Args:
      examples: n of them.
      seeds: where all randomness of each comes from.
      out: arrays of n rows, as another call returned them, that may be written
        to and returned.

    Returns:
      Arrays [n, ...], of the same shapes for any examples; and by their places
      among these the bad ones, whose rows hold anything.
    """


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
  load: Load
  seed: int
  place: Placement
  draws: Draws
  watch: Watch

  def __call__(self, first: int, count: int, out: Batch | None = None) -> Batch:
    """Returns arrays of `count` rows, and what `train_batches` adds.

    A decoder drives all else out of a processor's caches. So every step is
    taken for all rows before the next: the small ones cost half as much.

    Args:
      first: number of the first row.
      count: of rows.
      out: arrays to write to, as another call returned them.
    """
    try:
      return self._rows(first, count, out)
    finally:
      self.watch.end()

  def _rows(self, first: int, count: int, out: Batch | None) -> Batch:
    faults.take_retries()  # Of rows that were never finished.
    slots = [
      _Slot(self.seed, draw, draw.index)
      for draw in map(self._draw, range(first, first + count))
    ]
    parts, done = [], 0
    while done < count:
      examples = self._read_some(slots[done:])
      end = done + len(examples)
      here = out and {name: value[done:end] for name, value in out.items()}
      parts.append(self._fill(slots[done:end], examples, here))
      done = end
    return out or joined(parts)

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
    slots: Sequence[_Slot],
    examples: Sequence[Example],
    out: Batch | None,
  ) -> Batch:
    """Returns all arrays of some rows, `out` if there is one."""
    loaded, bad = self._load(slots, examples, out)
    for i, error in bad.items():
      for name, value in self._replace(slots[i], examples[i], error).items():
        shape = (len(slots), *value.shape[1:])
        loaded.setdefault(name, np.empty(shape, value.dtype))[i] = value[0]
    indices = [slot.index for slot in slots]
    images = [image_index(self.source, index) for index in indices]
    loaded["index"] = np.array(indices, np.int64)
    loaded["image_index"] = np.array(images, np.int64)
    told = [(slot.skipped, slot.retried) for slot in slots]
    loaded |= faults.as_rows(told, MAX_SKIPS)
    if out is None:
      return loaded
    for name, value in loaded.items():
      if value is not out[name]:
        out[name][:] = value
    return out

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

  def _load(
    self,
    slots: Sequence[_Slot],
    examples: Sequence[Example],
    out: Batch | None,
  ) -> tuple[Batch, dict[int, BadExample]]:
    seeds = [(self.seed, slot.draw.epoch, slot.index) for slot in slots]
    more = f" and {len(slots) - 1} more" if len(slots) > 1 else ""
    self.watch.begin(lambda index: self._name(index) + more, slots[0].index)
    return self.load(examples, seeds, out)

  def _replace(self, slot: _Slot, example: Example, error: BadExample) -> Batch:
    """Returns the one row of the first example that is good after all."""
    while True:
      slot.skip(example.name, error)
      example = self._read(slot)
      row, bad = self._load([slot], [example], None)
      if not bad:
        return row
      error = bad[0]

  def _name(self, index: int) -> str:
    name, number = locate(self.source, index)
    return f"example {number} of {name or 'the data'}"


def joined(parts: Sequence[Batch]) -> Batch:
  """Returns the rows of all parts."""
  return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


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
    for index in range(min(self.length, MAX_TRIES)):
      with contextlib.suppress(BadExample):
        example = self.load_one(index)
        return {name: np.zeros_like(value) for name, value in example.items()}
    raise RunStopped(f"none of the first {index + 1} examples can be used")
