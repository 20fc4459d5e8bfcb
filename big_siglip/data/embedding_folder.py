"""What lies in a folder of embeddings, and who made it; `embeddings` makes it.

Shape letters: N rows, E width of an embedding.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import dataset
import pyarrow.compute as pc
import pyarrow.parquet as pq

from big_siglip.errors import UserError

# Beside the shards: a line below makes readers of Parquet folders pass it by.
NAME, SKIPPED = "_embedding.json", "_skipped.jsonl"
# As they were called before.
OLD_NAMES = {NAME: "embedding.json", SKIPPED: "skipped.jsonl"}


@dataclasses.dataclass(frozen=True)
class Description:
  """Everything that all shards of a folder have in common.

  Attributes:
    kind: "images" or "texts".
    inputs: where they came from.
    count: how many they were, unreadable ones with them.
    fingerprint: see `Inputs.fingerprint`.
    checkpoint: where the model lay.
    parameters: a hash of all its parameters.
    width: of an embedding.
    preprocessing: of images and texts, the tokenizer's file as a hash.
    dtype: of the embeddings: "float32" or "float16".
    shard_size: inputs of a shard, unreadable ones with them.
    data: the format of the data set that they are of, or "" (files).
  """

  kind: str
  inputs: str
  count: int
  fingerprint: str
  checkpoint: str
  parameters: str
  width: int
  preprocessing: dict[str, Any]
  dtype: str
  shard_size: int
  data: str = ""

  @property
  def num_shards(self) -> int:
    """How many shards a finished folder has."""
    return -(-self.count // self.shard_size)

  def shard(self, number: int) -> range:
    """Returns the numbers of a shard's inputs."""
    start = number * self.shard_size
    return range(start, min(start + self.shard_size, self.count))


def read(folder: pathlib.Path) -> Description:
  """Returns what a folder says of itself.

  Raises:
    UserError: it says nothing, or not all.
  """
  file = description_file(folder)
  try:
    return Description(**json.loads(file.read_text()))
  except FileNotFoundError as error:
    raise UserError(f"{folder}: holds no embeddings (no {NAME})") from error
  except OSError as error:
    raise UserError(f"{file}: {error.strerror}") from error
  except (ValueError, TypeError) as error:
    raise UserError(f"{file}: is damaged ({error})") from error


def description_file(folder: pathlib.Path) -> pathlib.Path:
  """Returns the file that describes a folder, by its new name or its old."""
  old = folder / OLD_NAMES[NAME]
  new = folder / NAME
  return old if old.exists() and not new.exists() else new


def shard_name(shard: int) -> str:
  """Returns the name of a shard's file."""
  return f"shard-{shard:06}.parquet"


def read_metadata(file: pathlib.Path) -> pq.FileMetaData:
  """Returns what stands at the end of a shard; a damaged one is named."""
  try:
    return pq.read_metadata(file)
  except (pa.ArrowException, OSError) as error:
    raise UserError(
      f"{file}: is damaged ({str(error).splitlines()[0]}); without it, "
      "tools/embed.py makes it again"
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
    numbers = range(self.description.num_shards)
    files = [folder / shard_name(number) for number in numbers]
    self.shards = [file for file in files if file.exists()]
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

  def keys(self) -> list[str]:
    """Returns the keys of all rows."""
    tables = [pq.read_table(file, columns=["key"]) for file in self.shards]
    return [key for table in tables for key in table["key"].to_pylist()]

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
