"""Several sources as one, each with its share of every batch."""

import bisect
from collections.abc import Mapping
import itertools

import numpy as np

from big_siglip.data.faults import Fault
from big_siglip.data.sources import Example, Source


class Mixture:
  """The examples of all sources, one source after the other.

  Which of them training draws, and when, is the matter of `order.draws`.

  Attributes:
    names: what the sources are called, in alphabetical order: how a config
      happens to order them changes nothing.
    lengths: how many examples each has.
    weights: whole numbers, in proportion to the examples that are drawn.
    class_names: always None; the labels of the sources need not agree.
    faults: what was found when the sources were opened.
  """

  class_names = None

  def __init__(
    self, sources: Mapping[str, Source], weights: Mapping[str, float | None]
  ):
    """Puts sources together.

    Args:
      sources: by name, none of them empty.
      weights: by the same names. Kept to within 1 %. All None: in proportion to
        the lengths, so that all come to the end of an epoch together.
    """
    self.names = tuple(sorted(sources))
    self._sources = tuple(sources[name] for name in self.names)
    self.lengths = tuple(len(source) for source in self._sources)
    given = [w for name in self.names if (w := weights[name]) is not None]
    shares = given if len(given) == len(self.names) else self.lengths
    # grain brings the smallest to 100, cuts off what is behind the point, and
    # leaves these as they are.
    self.weights = tuple(round(100 * s / min(shares)) for s in shares)
    self.faults = sum((_faults(s) for s in self._sources), ())
    self._first = tuple(itertools.accumulate(self.lengths, initial=0))

  def __len__(self) -> int:
    return self._first[-1]

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(index)
    _, source, number = self.part(index)
    return source[number]

  @property
  def starts(self) -> tuple[int, ...]:
    """Returns the number of the first example of each source."""
    return self._first[:-1]

  def part(self, index: int) -> tuple[str, Source, int]:
    """Returns name and source of an example, and its number there."""
    part = bisect.bisect_right(self._first, index) - 1
    number = int(index) - self._first[part]
    return self.names[part], self._sources[part], number


class Subset:
  """Some examples of a source.

  Attributes:
    source: all of them.
    indices: int64 [n], their numbers in the source.
    class_names: those of the source.
    faults: the same.
  """

  def __init__(self, source: Source, indices: np.ndarray):
    """Takes the examples of `indices`, in that order."""
    self.source = source
    self.indices = indices
    self.class_names = source.class_names
    self.faults = _faults(source)

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self.source[int(self.indices[index])]


def locate(source: Source, index: int) -> tuple[str, int]:
  """Returns which example of the data one is.

  Args:
    source: what training draws from.
    index: the number of an example of it.

  Returns:
    The name of its source in a `Mixture`, else "", and its number there, before
    any were left out.
  """
  name = ""
  if isinstance(source, Mixture):
    name, source, index = source.part(index)
  if isinstance(source, Subset):
    index = source.indices[index]
  return name, int(index)


def image_index(source: Source, index: int) -> int:
  """Returns the number of the first example with the image of this one.

  Args:
    source: what training draws from.
    index: the number of an example of it.
  """
  if isinstance(source, Mixture):
    _, part, number = source.part(index)
    return int(index) - number + image_index(part, number)
  # A `Subset` holds no image twice.
  first = getattr(source, "image_index", None)
  return int(first(index) if first else index)


def opening_faults(source: Source, name: str = "") -> list[tuple[str, Fault]]:
  """Returns (name of the source, fault) for all that opening them found."""
  if isinstance(source, Mixture):
    parts = [source.part(first) for first in source.starts]
    return [
      pair for name, part, _ in parts for pair in opening_faults(part, name)
    ]
  if isinstance(source, Subset):
    return opening_faults(source.source, name)
  return [(name, fault) for fault in getattr(source, "faults", ())]


def epochs(source: Source, drawn: int) -> dict[str, float]:
  """Returns how often the data was gone through, as metrics.

  Args:
    source: what is drawn from; "epochs/NAME" for each source of a `Mixture`.
    drawn: examples so far, over all processes.
  """
  if not isinstance(source, Mixture):
    return {"epochs": drawn / len(source)}
  share = drawn / sum(source.weights)
  parts = zip(source.names, source.weights, source.lengths, strict=True)
  return {f"epochs/{name}": share * w / length for name, w, length in parts}


def _faults(source: Source) -> tuple[Fault, ...]:
  return tuple(getattr(source, "faults", ()))
