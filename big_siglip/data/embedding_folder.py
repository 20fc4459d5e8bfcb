"""What lies in a folder of embeddings, and who made it; `embeddings` makes it.

Its description names the shards, so that writing that file is what turns an old
state of the folder into a new one, at once. An update lays its shards beside
the old ones, under hidden names (`staged_name`), describes them, and only then
gives them their names: whatever a kill leaves, `shard_file` finds.

Shape letters: N rows, E width of an embedding.
"""

from collections.abc import Iterator, Sequence
import functools
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import dataset
import pyarrow.compute as pc
import pyarrow.parquet as pq

from big_siglip.data.embedding_description import (
  description_file,
  read,
  shard_file,
)
from big_siglip.errors import UserError


def read_metadata(file: pathlib.Path) -> pq.FileMetaData:
  """Returns what stands at the end of a shard; a damaged one is named."""
  try:
    return pq.read_metadata(file)
  except (pa.ArrowException, OSError) as error:
    raise UserError(
      f"{file}: is damaged ({str(error).splitlines()[0]}); without it, "
      "big-siglip embed makes it again"
    ) from error


class Reader:
  """Reads a folder of embeddings, finished or not.

  Attributes:
    folder: where it is.
    description: what it says of itself.
    shards: its files, in order.
    num_rows: embeddings in all of them.
    schema: the columns of a row; those beside key, text and embedding are for
      filters (`embeddings.filters`).
  """

  def __init__(self, folder: pathlib.Path):
    """Looks at the folder and at the ends of the shards.

    Raises:
      UserError: it holds no embeddings, or a damaged shard.
    """
    self.folder = folder
    self._seen = _seen(folder)
    self.description = read(folder)
    self._numbers, self.shards = [], []
    for number in self.description.shard_numbers:
      file = shard_file(folder, self.description, number)
      if file.exists():
        self._numbers.append(number)
        self.shards.append(file)
    metadata = [read_metadata(file) for file in self.shards]
    counts = [one.num_rows for one in metadata]
    self._ends = np.cumsum(counts, dtype=np.int64)
    self.num_rows = sum(counts)
    if not self.num_rows:
      raise UserError(f"{folder}: holds no embeddings yet")
    self.schema: pa.Schema = metadata[0].schema.to_arrow_schema()

  @property
  def is_whole(self) -> bool:
    """Whether every shard is there."""
    return len(self.shards) == self.description.num_shards

  @property
  def is_current(self) -> bool:
    """Whether the folder is as it was when this reader was made."""
    return self._seen == _seen(self.folder)

  def blocks(self, size: int) -> Iterator[np.ndarray]:
    """Yields all embeddings in order, NE float32 with N up to `size`.

    Memory does not grow with the number of rows.
    """
    for file in self.shards:
      with pq.ParquetFile(file, memory_map=True) as parquet:
        for batch in parquet.iter_batches(size, columns=["embedding"]):
          values = batch.column(0).flatten().to_numpy(zero_copy_only=False)
          values = values.reshape(-1, self.description.width)
          yield values.astype(np.float32, copy=False)

  def tables(self, size: int, chosen: np.ndarray) -> Iterator[pa.Table]:
    """Yields some rows in order, with their ids and all columns.

    Args:
      size: rows of a table, at most.
      chosen: bool [N], which rows.
    """
    start = 0
    for file in self.shards:
      with pq.ParquetFile(file, memory_map=True) as parquet:
        for batch in parquet.iter_batches(size):
          end = start + len(batch)
          own = pa.table(batch)
          if "id" not in own.column_names:
            own = own.append_column("id", pa.array(self.ids[start:end]))
          if chosen[start:end].any():
            yield own.filter(pa.array(chosen[start:end]))
          start = end

  def keys(self) -> list[str]:
    """Returns the keys of all rows."""
    tables = [pq.read_table(file, columns=["key"]) for file in self.shards]
    return [key for table in tables for key in table["key"].to_pylist()]

  @functools.cached_property
  def ids(self) -> np.ndarray:
    """The number [N] int64 of each row that it keeps through updates.

    A row that changes in anything gets another one.
    """
    parts, start = [np.zeros(0, np.int64)], 0
    for number, file, end in zip(
      self._numbers, self.shards, self._ends.tolist(), strict=True
    ):
      if self.description.columns is None:
        first = number * self.description.shard_size
        parts.append(np.arange(first, first + end - start))
      else:
        parts.append(pq.read_table(file, columns=["id"])["id"].to_numpy())
      start = end
    return np.concatenate(parts)

  def numbers_of(self, ids: np.ndarray) -> np.ndarray:
    """Returns the rows' numbers of ids; -1 where there is none."""
    order = self._order_of_ids
    places = np.searchsorted(self.ids, ids, sorter=order)
    numbers = order[np.minimum(places, len(order) - 1)]
    return np.where(self.ids[numbers] == ids, numbers, -1)

  @functools.cached_property
  def _order_of_ids(self) -> np.ndarray:
    return np.argsort(self.ids)

  def matching(self, condition: pc.Expression) -> np.ndarray:
    """Returns bool [N]: of which rows it is true."""
    files = [str(file) for file in self.shards]
    rows = dataset.dataset(files, schema=self.schema, format="parquet")
    found = rows.to_table(columns={"is": condition})["is"]
    return found.fill_null(False).to_numpy()

  def rows(self, numbers: Sequence[int]) -> list[tuple[str, str | None]]:
    """Returns (key, text) of some rows, text None for an image."""
    found = self._read(numbers, ["key", "text"])
    return [(row["key"], row["text"]) for row in found]

  def embeddings(self, numbers: Sequence[int]) -> np.ndarray:
    """Returns the embeddings of some rows, NE float32."""
    found = self._read(numbers, ["embedding"])
    return np.array([row["embedding"] for row in found], np.float32)

  def records(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Returns all columns of some rows but their embeddings."""
    names = [name for name in self.schema.names if name != "embedding"]
    return self._read(numbers, names)

  def _read(
    self, numbers: Sequence[int], names: Sequence[str]
  ) -> list[dict[str, Any]]:
    """Returns columns of some rows, from their groups of rows alone."""
    wanted, found = np.asarray(numbers, np.int64), {}
    shards = np.searchsorted(self._ends, wanted, side="right")
    for shard in np.unique(shards).tolist():
      with pq.ParquetFile(self.shards[shard], memory_map=True) as parquet:
        whole = parquet.metadata
        groups = [
          whole.row_group(g).num_rows for g in range(parquet.num_row_groups)
        ]
        starts = self._ends[shard] - whole.num_rows + np.cumsum([0, *groups])
        own = np.unique(wanted[shards == shard])
        of_rows = np.searchsorted(starts, own, side="right") - 1
        for group in np.unique(of_rows).tolist():
          table = parquet.read_row_group(group, columns=list(names))
          rows = own[of_rows == group]
          values = table.take(rows - starts[group]).to_pylist()
          found.update(zip(rows.tolist(), values, strict=True))
    return [found[number] for number in wanted.tolist()]


def _seen(folder: pathlib.Path) -> tuple[int, ...]:
  """Returns what changes whenever a folder is described anew."""
  try:
    stat = description_file(folder).stat()
  except OSError:
    return ()
  return stat.st_ino, stat.st_size, stat.st_mtime_ns
