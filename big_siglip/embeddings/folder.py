"""A folder of embeddings: Parquet shards beside a description of them all.

    embedding.json        see `Description`
    shard-000000.parquet  key, text, embedding of inputs 0 to shard_size - 1 ...
    skipped.jsonl         inputs that cannot be read, and why

A shard is written under another name and gets its own when it is whole. What
it left out stands in its own metadata, so that skipped.jsonl follows from the
shards alone, and a program that is killed between the two loses nothing.

Shape letters: N rows, E width of an embedding.
"""

from collections.abc import Iterator, Sequence
import json
import os
import pathlib

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from big_siglip import workdir
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings.description import Description
from big_siglip.errors import UserError

_SKIPPED = b"skipped"
_ROW_GROUP = 4096  # Rows; what a reader holds in memory at least.

Skipped = Sequence[tuple[str, str]]  # (key, reason) of each.


class Writer:
  """Writes the shards of a folder; goes on where another writer ended."""

  def __init__(self, folder: pathlib.Path, description: Description):
    """Makes the folder, or finds the shards that are there.

    Args:
      folder: a new one, or one of the same description.
      description: of what will be written.

    Raises:
      UserError: the folder was made otherwise, is damaged, cannot be written,
        or is being written.
    """
    self._folder = folder
    self._description = description
    self._shards = {}  # Number -> (rows, skipped).
    self._lock = filelock.FileLock(folder / ".lock")
    try:
      folder.mkdir(parents=True, exist_ok=True)
      self._lock.acquire(timeout=0)
      self._go_on()
    except filelock.Timeout as error:
      raise UserError(f"{folder}: another program writes here") from error
    except OSError as error:
      self.close()
      raise UserError(f"{folder}: not writable ({error.strerror})") from error
    except UserError:
      self.close()
      raise

  @property
  def missing(self) -> list[int]:
    """The numbers of the shards that are still to be written."""
    everything = range(self._description.num_shards)
    return [number for number in everything if number not in self._shards]

  @property
  def num_rows(self) -> int:
    """Embeddings in all shards."""
    return sum(rows for rows, _ in self._shards.values())

  @property
  def num_skipped(self) -> int:
    """Inputs left out of all shards."""
    return sum(len(skipped) for _, skipped in self._shards.values())

  def write(
    self,
    shard: int,
    keys: Sequence[str],
    texts: Sequence[str] | None,
    embeddings: np.ndarray,
    skipped: Skipped,
  ) -> None:
    """Writes one shard.

    Args:
      shard: its number.
      keys: of its rows.
      texts: of its rows; None if they are of images.
      embeddings: NE.
      skipped: what was left out.

    Raises:
      UserError: the disk is full, or something else keeps it from being
        written.
    """
    table = _table(self._description, keys, texts, embeddings, skipped)
    file = self._folder / _name(shard)
    partial = file.with_name(f".{file.name}.partial")
    try:
      with partial.open("wb") as stream:
        # Embeddings are noise to a compressor, and to a dictionary.
        pq.write_table(
          table,
          stream,
          row_group_size=_ROW_GROUP,
          compression="none",
          use_dictionary=False,
          write_statistics=False,
        )
        stream.flush()
        os.fsync(stream.fileno())  # Or a power cut may leave a name alone.
      partial.replace(file)
      self._shards[shard] = len(keys), list(skipped)
      if skipped:
        self._list_skipped()
    except OSError as error:
      raise UserError(f"{file}: not writable ({error.strerror})") from error

  def close(self) -> None:
    """Lets other programs write here."""
    self._lock.release()

  def _go_on(self) -> None:
    """Finds what is there, or says what will be."""
    if (self._folder / descriptions.NAME).exists():
      self._description.check_same(self._folder)
    else:
      _check_empty(self._folder)
      descriptions.write(self._folder, self._description)
    for number in range(self._description.num_shards):
      file = self._folder / _name(number)
      if file.exists():
        metadata = _read_metadata(file)
        self._shards[number] = metadata.num_rows, _skipped(metadata)
    self._list_skipped()

  def _list_skipped(self) -> None:
    name = "path" if self._description.kind == "images" else "line"
    lines = [
      json.dumps({name: key, "reason": reason}) + "\n"
      for _, (_, skipped) in sorted(self._shards.items())
      for key, reason in skipped
    ]
    workdir.write_whole(self._folder / "skipped.jsonl", "".join(lines))


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
    self.description = descriptions.read(folder)
    numbers = range(self.description.num_shards)
    files = [folder / _name(number) for number in numbers]
    self.shards = [file for file in files if file.exists()]
    counts = [_read_metadata(file).num_rows for file in self.shards]
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


def _name(shard: int) -> str:
  return f"shard-{shard:06}.parquet"


def _table(
  description: Description,
  keys: Sequence[str],
  texts: Sequence[str] | None,
  embeddings: np.ndarray,
  skipped: Skipped,
) -> pa.Table:
  values = embeddings.astype(description.dtype).reshape(-1)
  arrays = [
    pa.array(keys, pa.string()),
    pa.array(texts or [None] * len(keys), pa.string()),
    pa.FixedSizeListArray.from_arrays(pa.array(values), description.width),
  ]
  return pa.table(arrays, ["key", "text", "embedding"]).replace_schema_metadata(
    {_SKIPPED: json.dumps(list(skipped)).encode()}
  )


def _check_empty(folder: pathlib.Path) -> None:
  """Refuses shards whose description was lost: whose they are is not known."""
  if any(folder.glob("shard-*.parquet")):
    raise UserError(
      f"{folder}: holds shards but no {descriptions.NAME}; name another folder"
    )


def _read_metadata(file: pathlib.Path) -> pq.FileMetaData:
  try:
    return pq.read_metadata(file)
  except (pa.ArrowException, OSError) as error:
    raise UserError(
      f"{file}: is damaged ({str(error).splitlines()[0]}); without it, "
      "tools/embed.py makes it again"
    ) from error


def _skipped(metadata: pq.FileMetaData) -> Skipped:
  return json.loads((metadata.metadata or {}).get(_SKIPPED, b"[]"))
