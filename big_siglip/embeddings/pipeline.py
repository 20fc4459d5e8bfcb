"""Inputs -> shards: threads decode ahead of the devices, which never wait.

Shape letters: B batch, N rows of a shard, E width of an embedding.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import itertools
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from big_siglip.data.batch import Image, stack
from big_siglip.embeddings.given import AnyInputs, GRID, Prepared, STAMP
from big_siglip.embeddings.shards import Skipped
from big_siglip.trained.inference import Model

_IN_FLIGHT = 2  # Batches given to the devices before a result is waited for.

_T = TypeVar("_T")
_R = TypeVar("_R")


class Writes(Protocol):
  """What takes shards: a `folder.Writer`, or an `update.Update`."""

  def write(
    self,
    shard: int,
    keys: Sequence[str],
    texts: Sequence[str | None] | None,
    embeddings: np.ndarray,
    skipped: Skipped,
    ids: Sequence[int] | None = None,
    fields: Sequence[Mapping[str, Any]] | None = None,
  ) -> None:
    """See `folder.Writer.write`."""


class Before:
  """What a folder held before: nothing, so that each row is new."""

  def id(self, index: int) -> int:
    """Returns the id of the row of an input."""
    return index

  def kept(self, index: int) -> Prepared | None:
    """Returns an input's row with its embedding; None: it is not there."""
    del index

  def embedded(self, sha256: str) -> np.ndarray | None:
    """Returns the embedding of the same bytes; None: there is none."""
    del sha256


class _Member(NamedTuple):
  """One input in a shard: its place there, its row's id, and what it is."""

  place: int
  id: int
  one: Prepared


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Some inputs of one shard.

  Attributes:
    shard: its number.
    members: inputs that are embedded.
    rows: what a tower sees of them, B..., filled up to the batch size; None:
      no inputs.
    kept: inputs that were embedded before.
    skipped: inputs that the shard leaves out.
    last: the shard has no more.
  """

  shard: int
  members: list[_Member]
  rows: Image | None
  kept: list[_Member]
  skipped: list[Prepared]
  last: bool


def embed_missing(
  writer: Writes,
  model: Model,
  inputs: AnyInputs,
  shards: Mapping[int, Sequence[int]],
  *,
  batch_size: int,
  num_threads: int,
  progress: Callable[[int], None],
  before: Before | None = None,
) -> int:
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
    progress: told how many more inputs are done, kept ones aside.
    before: what need not be embedded again; None: all must be.

  Returns:
    How many inputs were embedded.
  """
  before = before or Before()
  largest = max(map(len, shards.values()), default=1)
  batch_size = min(batch_size, largest)
  ahead = 2 * batch_size + num_threads

  def prepare(item):
    shard, place, index = item
    one = before.kept(index) or inputs.prepare(model, index, before.embedded)
    try:  # Parquet's strings are UTF-8; a file's name may be any bytes.
      one.key.encode()
    except UnicodeEncodeError:
      one = one._replace(array=None, problem="its name is not UTF-8")
    return shard, _Member(place, before.id(index), one)

  items = (
    (shard, place, index)
    for shard in shards
    for place, index in enumerate(shards[shard])
  )
  prepared = map_ahead(prepare, items, num_threads, ahead)
  batches = _batches(prepared, batch_size)
  embedders = model.embedders
  tower = embedders.image if inputs.kind == "images" else embedders.text
  # Dispatched here, waited for behind: the devices have their next batch before
  # the last one's result is fetched.
  running = ((batch, _start(tower, model, batch)) for batch in batches)
  with ThreadPoolExecutor(1) as writing:
    shard, done, count = _Shard(), [], 0
    for batch, result in _behind(running, _IN_FLIGHT):
      count += shard.add(batch, result)
      progress(len(batch.members) + len(batch.skipped))
      if batch.last:
        for write in done:  # At most one shard waits to be written.
          write.result()
        done = [writing.submit(shard.write, writer, batch.shard)]
        shard = _Shard()
    for write in done:
      write.result()
  return count


class _Shard:
  """What a shard will hold, as far as it is embedded."""

  def __init__(self):
    self._members: list[_Member] = []
    self._skipped: list[Prepared] = []

  def add(self, batch: _Batch, result: jax.Array | None) -> int:
    """Adds what is embedded; what is no numbers would match everything.

    Returns:
      How many inputs were embedded.
    """
    self._members += batch.kept
    self._skipped += batch.skipped
    if result is None:
      return 0
    rows = np.asarray(result)[: len(batch.members)]
    good = [bool(np.isfinite(row).all()) for row in rows]
    for member, row, finite in zip(batch.members, rows, good, strict=True):
      if finite:
        one = member.one._replace(array=None, embedding=row)
        self._members.append(member._replace(one=one))
      else:
        one = member.one._replace(problem="its embedding is not finite")
        self._skipped.append(one)
    return sum(good)

  def write(self, writer: Writes, number: int) -> None:
    """Writes it."""
    members = sorted(self._members, key=lambda member: member.place)
    ones = [member.one for member in members]
    texts = [one.text for one in ones]
    rows = [one.embedding for one in ones if one.embedding is not None]
    writer.write(
      number,
      [one.key for one in ones],
      None if all(text is None for text in texts) else texts,
      np.stack(rows) if rows else np.zeros((0, 0), np.float32),
      [_left_out(one) for one in self._skipped],
      [member.id for member in members],
      [one.fields for one in ones],
    )


def _left_out(one: Prepared) -> tuple[Any, ...]:
  """Returns key, reason, and by what it is known again if it stays so."""
  return (one.key, one.problem, *(one.fields.get(name) for name in STAMP))


def _start(tower, model: Model, batch: _Batch) -> jax.Array | None:
  if batch.rows is None:
    return None
  return tower(model.params, batch.rows, {})[0]


def _batches(
  prepared: Iterable[tuple[int, _Member]], size: int
) -> Iterator[_Batch]:
  """Groups (shard, input), shard by shard."""
  for shard, inputs in itertools.groupby(prepared, lambda item: item[0]):
    members, rows, kept, skipped = [], [], [], []
    for _, member in inputs:
      one = member.one
      if one.problem:
        skipped.append(one)
      elif one.embedding is not None:
        kept.append(member)
      else:
        members.append(member._replace(one=_without_pixels(one)))
        rows.append(one.array)
      if len(rows) == size:
        yield _Batch(shard, members, stack(rows), kept, skipped, last=False)
        members, rows, kept, skipped = [], [], [], []
    # Filled up, so that there is one shape to compile.
    rows += rows[-1:] * (size - len(rows))
    stacked = stack(rows) if rows else None
    yield _Batch(shard, members, stacked, kept, skipped, last=True)


def _without_pixels(one: Prepared) -> Prepared:
  """Returns an input without what a tower sees of it, but with its grid."""
  fields = one.fields
  if isinstance(one.array, Mapping):
    fields = {
      **fields,
      **dict(zip(GRID, one.array["grid"].tolist(), strict=True)),
    }
  return one._replace(array=None, fields=fields)


def map_ahead(
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
