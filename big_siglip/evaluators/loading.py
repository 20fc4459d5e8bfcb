"""Passes over the images and the texts of a data set that is evaluated."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from big_siglip.data.batch import Batch
from big_siglip.data.pipeline import eval_batches
from big_siglip.data.preprocessing import Preprocess
from big_siglip.data.sources import Example, Source
from big_siglip.errors import BadExample, UserError
from big_siglip.evaluators.embed import Rows
from big_siglip.evaluators.retrieval import Captions


def owners(groups: Sequence[Sequence[str]]) -> np.ndarray:
  """Returns the number of the group that each member of all is in."""
  return np.repeat(np.arange(len(groups)), list(map(len, groups)))


class Loader:
  """Starts passes over images and texts, in this process's share."""

  def __init__(
    self, where: str, preprocess: Preprocess, batch_size: int, devices: int
  ):
    """Reads nothing yet.

    Args:
      where: what messages call the data set.
      preprocess: what comes before the towers.
      batch_size: rows that a device embeds at once.
      devices: how many there are.
    """
    self._where = where
    self._preprocess = preprocess
    self._batch_size = batch_size
    self._devices = devices

  def images(
    self,
    source: Source,
    extra: Callable[[Example], Batch] = lambda example: {},
    keep: Callable[[int, Example], None] = lambda index, example: None,
  ) -> Rows:
    """Returns the images, with `extra` of each.

    Args:
      source: the examples.
      extra: returns further arrays of an example.
      keep: is told of each good one before it is embedded, with its number.
    """
    # Of the images that this process has read; names of others are looked up.
    seen: dict[int, str] = {}

    def load(index: int) -> Batch:
      example = source[index]
      seen[index] = example.name
      try:
        image = self._preprocess.image(example.image)
      except BadExample as error:
        raise BadExample(f"{example.name}: {error}", error.kind) from error
      arrays = {"image": image, "index": np.int32(index), **extra(example)}
      keep(index, example)
      return arrays

    def name(index: int) -> str:
      try:
        return seen.get(index) or source[index].name
      except BadExample as error:
        return error.name or f"number {index}"

    count = len(source)
    return Rows("image", lambda: self._batches(count, load), name, count)

  def texts(self, texts: list[str]) -> Rows:
    """Returns the texts."""
    tokens = self._preprocess.texts(texts)

    def load(index: int) -> Batch:
      return {"text": tokens[index], "index": np.int32(index)}

    return Rows(
      "text",
      lambda: self._batches(len(texts), load),
      lambda i: repr(texts[i][:60]),
      len(texts),
    )

  def captions(self, texts: list[tuple[str, ...]]) -> Captions:
    """Returns the captions of all images."""
    every = [text for group in texts for text in group]
    if not every:
      raise UserError(f"config.evals: {self._where}: has no caption to ask by")
    return Captions(self.texts(every), owners(texts), every)

  def _batches(
    self, length: int, load: Callable[[int], Batch]
  ) -> Iterator[Batch]:
    """Starts a pass of this process.

    How many rows a device has at once must not depend on the devices.
    """
    processes = jax.process_count()
    rows = min(self._batch_size, length) * self._devices
    return eval_batches(
      length,
      load,
      batch_size=-(-rows // processes) * processes,
      process_index=jax.process_index(),
      process_count=processes,
    )
