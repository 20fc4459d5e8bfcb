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
      "big-siglip embed makes it again"
    ) from error


class Reader:
  """Reads a folder of embeddings, finished or not.

  Attributes:
    folder: where it is.
    description: what it says of itself.
    shards: its files, in order.
    num_rows: embeddings in all of them.
  """

  def __init__(self, folder: pathlib.Path):
    """Looks at the folder and at the ends of the shards.

    Raises:
      UserError: it holds no embeddings, or a damaged shard.
    """
    self.folder = folder
    self.description = read(folder)
    numbers = range(self.description.num_shards)
    files = [folder / shard_name(number) for number in numbers]
    self.shards = [file for file in files if file.exists()]
    counts = [read_metadata(file).num_rows for file in self.shards]
    self._ends = np.cumsum(counts, dtype=np.int64)
    self.num_rows = sum(counts)
    if not self.num_rows:
      raise UserError(f"{folder}: holds no embeddings yet")

  @property
  def is_whole(self) -> bool:
    """Whether every shard is there."""
    return len(self.shards) == self.description.num_shards

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

  def rows(self, numbers: Sequence[int]) -> list[tuple[str, str | None]]:
    """Returns (key, text) of some rows, text None for an image."""
    found = {}
    shards = np.searchsorted(self._ends, numbers, side="right")
    for shard in sorted(set(shards.tolist())):
      columns = ["key", "text"]
      table = pq.read_table(self.shards[shard], columns=columns)
      start = self._ends[shard] - table.num_rows
      for number in np.asarray(numbers)[shards == shard]:
        at = int(number - start)
        found[int(number)] = tuple(table[c][at].as_py() for c in columns)
    return [found[int(number)] for number in numbers]
