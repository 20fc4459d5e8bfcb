"""Images with masks, as dense evaluators read them.

Shape letters: h x w the grid of patches, H and W pixels, C classes, T values.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from big_siglip.data import images, masks
from big_siglip.data.sources import Example, Source
from big_siglip.errors import BadExample
from big_siglip.evaluators.embed import Embed, Rows
from big_siglip.evaluators.grids import Grid
from big_siglip.evaluators.loading import Loader
from big_siglip.evaluators.overlap import Overlap
from big_siglip.evaluators.patches import passing


@dataclasses.dataclass(frozen=True)
class Masked:
  """Images with masks, and what patches of them say of every pixel.

  Attributes:
    rows: the images; one that is bad, or whose mask is, is left out.
    grid: which part of an image the patches cover.
    names: of the classes, C.
    waiting: masks that this process has read, by the numbers of their images,
      until they are asked for.
  """

  rows: Rows
  grid: Grid
  names: tuple[str, ...]
  waiting: dict[int, np.ndarray]

  def each(
    self, embed: Embed, params: Any
  ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (number, patches hwT, mask [H, W]) of this process's images.

    All processes must go through all of it together.
    """
    self.waiting.clear()
    for number, patches in passing(self.rows, embed, params, self.grid.side):
      mask = self.waiting.pop(number, None)
      if mask is not None:
        yield number, patches, mask

  @functools.cached_property
  def ceiling(self) -> "Ceiling":
    """What counts the best that patches of this size can do, once."""
    return Ceiling(self)

  def scores(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns values of patches hwT for each pixel of a mask, HWT."""
    return self.grid.to_pixels(values, *mask.shape)


class Ceiling:
  """What patches reach that know which share of them is of which class.

  Between patches the shares, or their logarithms, are interpolated, as scores
  are; or the class of most of a patch's pixels fills it. Which is best depends
  on the patches and the things. It is a mark to read figures by, no proof:
  other scores of the same patches may turn out a little better.
  """

  def __init__(self, masked: Masked):
    """Has counted nothing yet."""
    self._grid, self._classes = masked.grid, len(masked.names)
    self._ways = [Overlap(masked.rows.count, self._classes) for _ in range(3)]
    self._best: Overlap | None = None

  def add(self, number: int, mask: np.ndarray) -> None:
    """Counts an image, until all are counted: masks do not change."""
    if self._best is not None:
      return
    counts = self._grid.classes(mask, self._classes)
    sharp = np.log(counts / np.maximum(counts.sum(-1, keepdims=True), 1) + 1e-2)
    ways = (
      self._grid.to_pixels(counts, *mask.shape).argmax(axis=-1),
      self._grid.to_pixels(sharp, *mask.shape).argmax(axis=-1),
      self._grid.to_nearest(counts.argmax(axis=-1), *mask.shape),
    )
    for way, predicted in zip(self._ways, ways, strict=True):
      way.add(number, predicted, mask)

  def best(self) -> Overlap:
    """Returns the way of the better mIoU; all processes must ask together."""
    if self._best is None:
      ways = [way.gathered() for way in self._ways]
      self._best = max(ways, key=Overlap.mean)
    return self._best


class MaskClasses(NamedTuple):
  """What the values of masks mean.

  Attributes:
    names: of each class, the first of which messages and tables use.
    of_value: {value: class}.
    ignored: further values that are no class.
  """

  names: tuple[tuple[str, ...], ...]
  of_value: dict[int, int]
  ignored: tuple[int, ...] = ()


def read_masked(
  source: Source, loader: Loader, key: str, grid: Grid, classes: MaskClasses
) -> Masked:
  """Returns the images of a data set and their masks; reads none yet.

  Args:
    source: its examples have the field `key`.
    loader: of images.
    key: of the masks.
    grid: see `Masked`.
    classes: what their values mean.
  """
  table = np.full(256, -1, np.int16)
  for value, number in classes.of_value.items():
    table[value] = number
  table[[masks.IGNORED, *classes.ignored]] = masks.IGNORED
  waiting: dict[int, np.ndarray] = {}

  def keep(number: int, example: Example) -> None:
    waiting[number] = _mask(example, key, table)

  rows = loader.images(source, keep=keep)
  names = tuple(own[0] for own in classes.names)
  return Masked(rows, grid, names, waiting)


def _mask(example: Example, key: str, table: np.ndarray) -> np.ndarray:
  """Returns a mask of classes.

  Raises:
    BadExample: there is none, it has another size than its image, or it holds a
      value that is no class.
  """
  value = example.fields[key]
  if value is None:
    raise BadExample(f"{example.name}: has no {key}", "missing")
  try:
    mask = masks.decode(value)
  except images.BadImage as error:
    raise BadExample(f"{example.name}: {error}", error.kind) from error
  if isinstance(example.image, bytes):
    width, height = images.size_of(example.image)
  else:
    height, width = example.image.shape[:2]
  if mask.shape != (height, width):
    raise BadExample(
      f"{example.name}: its mask is {mask.shape[1]}x{mask.shape[0]} pixels, "
      f"and the image {width}x{height}",
      "image",
    )
  found = table[mask]
  unknown = mask[found < 0]
  if len(unknown):
    value = int(unknown[0])
    raise BadExample(
      f"{example.name}: its mask holds {value}, which is no class", "record"
    )
  return found.astype(np.uint8)
