"""Which example stands where in the endless stream: a pure function.

Everything follows from the seed and a position in the stream, in constant time
and memory: grain shuffles by a permutation that is computed, not stored, and
mixes by counting. So there is nothing to pass over at the start and no state to
save but a position.
"""

from collections.abc import Sequence
import dataclasses
import sys
from typing import NamedTuple

import grain
import numpy as np


class Draw(NamedTuple):
  """What stands at one position.

  Attributes:
    epoch: how often its source was gone through before.
    index: the number of the example.
    first: the least number of its source ...
    count: ... and how many it has: another example may take its place.
  """

  epoch: int
  index: int
  first: int
  count: int


def draws(
  lengths: Sequence[int], weights: Sequence[int], seed: int
) -> grain.MapDataset:
  """Returns position -> `Draw`.

  Position p of one source is number p % n of its epoch p // n, n its length,
  and every epoch has an order of its own. In a mixture every stretch of the
  stream has each source's share of examples, within one, and each source is
  gone through as if it were alone.

  Args:
    lengths: of the sources, whose examples are numbered one after the other.
    weights: whole numbers, the smallest 100 where there are several.
    seed: in [0, 2**32).
  """
  if len(lengths) == 1:
    return _source_draws(0, lengths[0], seed)
  seeds = np.random.SeedSequence(seed).generate_state(len(lengths))
  parts, first = [], 0
  for length, part_seed in zip(lengths, seeds, strict=True):
    parts.append(_source_draws(first, length, int(part_seed)))
    first += length
  return grain.MapDataset.mix(parts, weights)


def _source_draws(first: int, length: int, seed: int) -> grain.MapDataset:
  shuffled = grain.MapDataset.range(length).seed(seed).shuffle().repeat()
  draw = _DrawOfSource(first, length, shuffled)
  return grain.MapDataset.range(sys.maxsize).map(draw)


@dataclasses.dataclass(frozen=True)
class _DrawOfSource:
  first: int
  length: int
  shuffled: grain.MapDataset

  def __call__(self, position: int) -> Draw:
    index = self.first + int(self.shuffled[position])
    epoch = int(position) // self.length
    return Draw(epoch, index, self.first, self.length)
