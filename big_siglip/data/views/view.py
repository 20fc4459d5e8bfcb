"""What a view is, and how several of them look at the same examples.

A view makes some arrays of a batch from its examples. To add one: a frozen
dataclass as `View` says, in a file of its own, and a line in `build.views`.
"""

from collections.abc import Sequence
import dataclasses
from typing import Protocol, runtime_checkable
import zlib

import numpy as np

from big_siglip.data.batch import Batch, Fields, rows_of
from big_siglip.data.decoding import LazyImage
from big_siglip.data.sources import Example
from big_siglip.errors import BadExample

Seed = tuple[int, ...]  # (seed of the run, epoch, number of the example).


@dataclasses.dataclass(frozen=True)
class Sample(Example):
  """What views see: an example whose image is decoded when looked at."""

  image: LazyImage  # pyright: ignore[reportIncompatibleVariableOverride]

  @classmethod
  def of(cls, example: Example, fast: bool) -> "Sample":
    """Reads the image's header alone; `fast`: see `LazyImage`."""
    image = LazyImage(example.image, fast)
    return cls(**vars(example) | {"image": image})


class Streams:
  """The random generators of a view, one for each of some examples.

  Their seeds are (seed, epoch, index, crc32 of the view's name): what one view
  draws changes nothing for another. To make one takes its time, so `[i]` does
  it when it is asked for; asked again, it starts the stream again.
  """

  def __init__(self, seeds: Sequence[Seed], name: str):
    """Makes none yet."""
    self._seeds = seeds
    self._name = name

  def __len__(self) -> int:
    return len(self._seeds)

  def __getitem__(self, i: int) -> np.random.Generator:
    view = zlib.crc32(self._name.encode())
    return np.random.default_rng((*self._seeds[i], view))

  def of(self, name: str) -> "Streams":
    """Returns those of another view for the same examples.

    So a view sees what another one draws: a caption, where an image is cut.
    """
    return Streams(self._seeds, name)


class View(Protocol):
  """Makes some arrays of a batch; frozen, picklable and pure."""

  @property
  def name(self) -> str:
    """What its random stream is called: views of one name draw the same."""
    ...

  def fields(self, batch: int) -> Fields:
    """Returns the arrays that it makes of a global batch, by its number."""
    ...

  def __call__(
    self,
    examples: Sequence[Sample],
    rngs: Sequence[np.random.Generator] | Streams,
    out: Batch,
  ) -> dict[int, BadExample]:
    """Writes the rows of n examples to `out`.

    Args:
      examples: n of them. A field of `config.data.fields` is None where an
        example lacks it.
      rngs: the generator of each, from which all randomness comes.
      out: arrays of n rows, with those of `fields` among them.

    Returns:
      What is wrong with some examples, by their places among these; their rows
      may hold anything, and are given to other examples.
    """
    ...


@runtime_checkable
class ImageView(View, Protocol):
  """A view of images, which are decoded once for all views.

  They are decoded at the scale that the most demanding of them needs. Each
  takes one example at a time, whose image is dropped before the next.
  """

  def scale(
    self, height: int, width: int, rng: np.random.Generator
  ) -> float | None:
    """Returns at what scale it needs an image: see `LazyImage.need`.

    It draws what it will draw when called, with an equal generator.

    Args:
      height: of the whole image, in pixels.
      width: the same.
      rng: its generator.
    """
    ...


def fill(
  views: Sequence[View],
  batch: int,
  examples: Sequence[Example],
  seeds: Sequence[Seed],
  out: Batch,
  *,
  fast: bool,
) -> dict[int, BadExample]:
  """Writes what all views make of n examples.

  Args:
    views: of different arrays.
    batch: the number of the global batch.
    examples: n of them.
    seeds: one for each.
    out: arrays of n rows.
    fast: how images are decoded: see `LazyImage`.

  Returns:
    As a view does.
  """
  samples = [Sample.of(example, fast) for example in examples]
  bad: dict[int, BadExample] = {}
  of_images = []
  for view in views:
    if isinstance(view, ImageView):
      of_images.append(view)
    else:
      bad = dict(view(samples, Streams(seeds, view.name), out)) | bad
  names = [name for view in of_images for name in view.fields(batch)]
  arrays = {name: out[name] for name in names}
  for i, sample in enumerate(samples) if of_images else ():
    row = slice(i, i + 1)
    error = _look(of_images, sample, seeds[row], rows_of(arrays, row))
    if error is not None:
      bad.setdefault(i, error)
    sample.image.forget()
  return bad


def _look(
  views: Sequence[ImageView], sample: Sample, seeds: Sequence[Seed], out: Batch
) -> BadExample | None:
  """Writes what views of images make of one; returns what is wrong with it."""
  if sample.image.fast and len(views) > 1:
    try:
      height, width = sample.image.shape()
    except BadExample as error:
      return error
    for view in views:
      rng = Streams(seeds, view.name)[0]
      sample.image.need(view.scale(height, width, rng))
  for view in views:
    if bad := view([sample], Streams(seeds, view.name), out):
      return bad[0]
  return None
