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
from big_siglip.embeddings.inputs import AnyInputs, Prepared
from big_siglip.trained.inference import Model

_IN_FLIGHT = 2  # Batches given to the devices before a result is waited for.

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Some inputs of one shard.

  Attributes:
    shard: its number.
    members: (key, text) of the inputs.
    rows: what a tower sees of them, B..., filled up to the batch size; None:
      no inputs.
    skipped: (key, reason) of inputs that the shard leaves out; of the last
      batch alone.
    last: the shard has no more.
  """

  shard: int
  members: list[tuple[str, str | None]]
  rows: np.ndarray | None
  skipped: list[tuple[str, str]]
  last: bool


def embed_missing(
  writer: Writer,
  model: Model,
  inputs: AnyInputs,
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
    one = inputs.prepare(model, index)
    try:  # Parquet's strings are UTF-8; a file's name may be any bytes.
      one.key.encode()
    except UnicodeEncodeError:
      one = one._replace(array=None, problem="its name is not UTF-8")
    return shard, one

  items = ((shard, index) for shard in shards for index in shards[shard])
  prepared = _map_ahead(prepare, items, num_threads, ahead)
  batches = _batches(prepared, batch_size)
  embedders = model.embedders
  tower = embedders.image if inputs.kind == "images" else embedders.text
  # Dispatched here, waited for behind: the devices have their next batch before
  # the last one's result is fetched.
  running = ((batch, _start(tower, model, batch)) for batch in batches)
  with ThreadPoolExecutor(1) as writing:
    shard, done = _Shard(), []
    for batch, result in _behind(running, _IN_FLIGHT):
      if result is not None:
        shard.add(batch.members, np.asarray(result)[: len(batch.members)])
      progress(len(batch.members))
      if batch.last:
        for write in done:  # At most one shard waits to be written.
          write.result()
        shard.skipped += batch.skipped
        done = [writing.submit(shard.write, writer, batch.shard)]
        progress(len(batch.skipped))
        shard = _Shard()
    for write in done:
      write.result()


class _Shard:
  """What a shard will hold, as far as it is embedded."""

  def __init__(self):
    self._members: list[tuple[str, str | None]] = []
    self._parts: list[np.ndarray] = []
    self.skipped: list[tuple[str, str]] = []

  def add(self, members, rows: np.ndarray) -> None:
    """Adds what is embedded; what is no numbers would match everything."""
    good = np.isfinite(rows).all(axis=1)
    self._parts.append(rows[good])
    for (key, text), finite in zip(members, good.tolist(), strict=True):
      if finite:
        self._members.append((key, text))
      else:
        self.skipped.append((key, "its embedding is not finite"))

  def write(self, writer: Writer, number: int) -> None:
    """Writes it."""
    keys = [key for key, _ in self._members]
    texts = [text for _, text in self._members]
    if all(text is None for text in texts):
      texts = None
    parts = self._parts
    embeddings = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    writer.write(number, keys, texts, embeddings, self.skipped)


def _start(tower, model: Model, batch: _Batch) -> jax.Array | None:
  if batch.rows is None:
    return None
  return tower(model.params, batch.rows, {})[0]


def _batches(
  prepared: Iterable[tuple[int, Prepared]], size: int
) -> Iterator[_Batch]:
  """Groups (shard, input), shard by shard."""
  for shard, inputs in itertools.groupby(prepared, lambda item: item[0]):
    members, rows, skipped = [], [], []
    for _, one in inputs:
      if one.array is None:
        skipped.append((one.key, one.problem))
        continue
      members.append((one.key, one.text))
      rows.append(one.array)
      if len(rows) == size:
        yield _Batch(shard, members, np.stack(rows), [], last=False)
        members, rows = [], []
    # Filled up, so that there is one shape to compile.
    rows += rows[-1:] * (size - len(rows))
    stacked = np.stack(rows) if rows else None
    yield _Batch(shard, members, stacked, skipped, last=True)


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
