"""Inputs -> shards: threads decode ahead of the devices, which never wait.

Shape letters: B batch, N rows of a shard, E width of an embedding.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import itertools
from typing import TypeVar

import jax
import numpy as np

from big_siglip.embeddings.folder import Writer
from big_siglip.embeddings.inputs import BadInput, Inputs
from big_siglip.trained.inference import Model

_IN_FLIGHT = 2  # Batches given to the devices before a result is waited for.

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Some inputs of one shard.

  Attributes:
    shard: its number.
    indices: of the inputs.
    rows: what a tower sees of them, B..., filled up to the batch size; None:
      no inputs.
    skipped: (key, reason) of all inputs that the shard leaves out; of the last
      batch alone.
    last: the shard has no more.
  """

  shard: int
  indices: list[int]
  rows: np.ndarray | None
  skipped: list[tuple[str, str]]
  last: bool


def embed_missing(
  writer: Writer,
  model: Model,
  inputs: Inputs,
  shards: dict[int, range],
  *,
  batch_size: int,
  num_threads: int,
  progress: Callable[[int], None],
) -> None:
  """Embeds and writes the shards that a folder has not.

  No batch has rows of two shards, so that a shard's bits do not depend on
  which others were there already.

  Args:
    writer: of the folder.
    model: the model.
    inputs: what is embedded.
    shards: the numbers of the missing ones, with those of their inputs.
    batch_size: rows that are embedded at once.
    num_threads: threads that read and decode.
    progress: told how many more inputs are done.
  """
  largest = max(map(len, shards.values()), default=1)
  batch_size = min(batch_size, largest)
  ahead = 2 * batch_size + num_threads

  def prepare(item):
    shard, index = item
    try:
      return shard, index, inputs.prepare(model, index)
    except BadInput as error:
      return shard, index, str(error)

  items = ((shard, index) for shard in shards for index in shards[shard])
  prepared = _map_ahead(prepare, items, num_threads, ahead)
  batches = _batches(prepared, inputs, batch_size)
  tower = (
    model.embedders.image if inputs.texts is None else model.embedders.text
  )
  # Dispatched here, waited for behind: the devices have their next batch before
  # the last one's result is fetched.
  running = ((batch, _start(tower, model, batch)) for batch in batches)
  with ThreadPoolExecutor(1) as writing:
    parts, indices, done = [], [], []
    for batch, result in _behind(running, _IN_FLIGHT):
      if result is not None:
        parts.append(np.asarray(result)[: len(batch.indices)])
        indices += batch.indices
      progress(len(batch.indices))
      if batch.last:
        for write in done:  # At most one shard waits to be written.
          write.result()
        done = [writing.submit(_write, writer, inputs, batch, indices, parts)]
        progress(len(batch.skipped))
        parts, indices = [], []
    for write in done:
      write.result()


def _write(writer: Writer, inputs: Inputs, batch: _Batch, indices, parts):
  keys = [inputs.keys[i] for i in indices]
  texts = inputs.texts and [inputs.texts[i] for i in indices]
  embeddings = np.concatenate(parts) if parts else np.zeros(0, np.float32)
  writer.write(batch.shard, keys, texts, embeddings, batch.skipped)


def _start(tower, model: Model, batch: _Batch) -> jax.Array | None:
  if batch.rows is None:
    return None
  return tower(model.params, batch.rows, {})[0]


def _batches(
  prepared: Iterable[tuple[int, int, np.ndarray | str]],
  inputs: Inputs,
  size: int,
) -> Iterator[_Batch]:
  """Groups (shard, index, array or why there is none), shard by shard."""
  for shard, members in itertools.groupby(prepared, lambda item: item[0]):
    indices, rows, skipped = [], [], []
    for _, index, array in members:
      if isinstance(array, str):
        skipped.append((inputs.keys[index], array))
        continue
      indices.append(index)
      rows.append(array)
      if len(rows) == size:
        yield _Batch(shard, indices, np.stack(rows), [], last=False)
        indices, rows = [], []
    # Filled up, so that there is one shape to compile.
    rows += rows[-1:] * (size - len(rows))
    stacked = np.stack(rows) if rows else None
    yield _Batch(shard, indices, stacked, skipped, last=True)


def _map_ahead(
  function: Callable[[_T], _R], items: Iterable[_T], threads: int, ahead: int
) -> Iterator[_R]:
  """Yields function(item) in order, up to `ahead` of them made before."""
  executor = ThreadPoolExecutor(threads)
  try:
    waiting = collections.deque()
    for item in items:
      waiting.append(executor.submit(function, item))
      if len(waiting) > ahead:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    executor.shutdown(cancel_futures=True)


def _behind(items: Iterable[_T], count: int) -> Iterator[_T]:
  """Yields each item once `count` more are made."""
  waiting = collections.deque()
  for item in items:
    waiting.append(item)
    if len(waiting) > count:
      yield waiting.popleft()
  yield from waiting
