"""Rows of a folder of embeddings that are written again as they are."""

from collections.abc import Iterable, Mapping
import functools
import pathlib
import threading
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from big_siglip.embeddings.changes import Changes, Row
from big_siglip.embeddings.given import GRID, Prepared
from big_siglip.embeddings.pipeline import Before

_SHARDS = 4  # So many are held in memory.


class _Shard(NamedTuple):
  """A shard that was read whole.

  Attributes:
    fields: values of its columns but the embedding.
    embeddings: [rows, width].
  """

  fields: Mapping[str, list[Any]]
  embeddings: np.ndarray


class Kept(Before):
  """What need not be embedded again, read from where it lies."""

  def __init__(
    self, changes: Changes, ids: Mapping[int, int], embedded: Iterable[Row]
  ):
    """Reads nothing yet.

    Args:
      changes: which inputs are the same.
      ids: of the rows that will be written, by the number of the input.
      embedded: rows whose embeddings serve for the same bytes.
    """
    self._changes, self._ids = changes, ids
    self._places = {
      row.stamp.sha256: (row.file, row.row)
      for row in embedded
      if row.stamp.sha256 is not None and row.row >= 0
    }
    self._read = functools.lru_cache(_SHARDS)(_read)
    self._reading = threading.Lock()

  def id(self, index: int) -> int:
    """See `Before.id`."""
    return self._ids[index]

  def kept(self, index: int) -> Prepared | None:
    """See `Before.kept`."""
    if index not in self._changes.same:
      return None
    seen = self._changes.seen[index]
    row = self._changes.rows[self._changes.names[index]]
    fields = {}
    for stamp in (row.stamp, seen.stamp):  # The time may be another now.
      known = stamp._asdict() if stamp else {}
      fields |= {name: v for name, v in known.items() if v is not None}
    one = Prepared(seen.key, seen.text, None, row.reason, fields)
    if row.reason:
      return one
    shard = self._shard(row.file)
    had = {name: values[row.row] for name, values in shard.fields.items()}
    return one._replace(
      fields={**had, **fields, **seen.fields},
      embedding=shard.embeddings[row.row],
    )

  def embedded(self, sha256: str) -> np.ndarray | None:
    """See `Before.embedded`."""
    place = self._places.get(sha256)
    if place is None:
      return None
    shard = self._shard(place[0])
    if GRID.keys() <= shard.fields.keys():
      return None  # Of patches, whose grid goes with them.
    return shard.embeddings[place[1]]

  def _shard(self, file: pathlib.Path) -> _Shard:
    with self._reading:  # Or each thread would read it.
      return self._read(file)


def _read(file: pathlib.Path) -> _Shard:
  table = pq.read_table(file)
  rows = table["embedding"].combine_chunks()
  values = rows.flatten().to_numpy(zero_copy_only=False)
  fields = table.drop_columns(["embedding"]).to_pydict()
  shape = (len(rows), rows.type.list_size)
  return _Shard(fields, values.reshape(shape).astype(np.float32))
