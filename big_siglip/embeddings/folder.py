"""A folder of embeddings: Parquet shards beside a description of them all.

    _embedding.json       see `Description`
    shard-000000.parquet  key, text, embedding of inputs 0 to shard_size - 1 ...
    _skipped.jsonl        inputs that cannot be read, and why

A shard is written under another name and gets its own when it is whole. What
it left out stands in its own metadata, so that _skipped.jsonl follows from the
shards alone, and a program that is killed between the two loses nothing.

Names that begin with a line are passed by where a folder of Parquet files is
read: `pyarrow.parquet.read_table(FOLDER)` gives all rows.

Shape letters: N rows, E width of an embedding.
"""

from collections.abc import Sequence
import json
import os
import pathlib

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from big_siglip.data.embedding_folder import (
  Description,
  OLD_NAMES,
  read_metadata,
  shard_name,
  SKIPPED,
)
from big_siglip.embeddings import description as descriptions
from big_siglip.errors import UserError
from big_siglip.run import workdir

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
    file = self._folder / shard_name(shard)
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
    if descriptions.description_file(self._folder).name in OLD_NAMES.values():
      # The description last: with it the folder is one of the new kind.
      for new, old in reversed(OLD_NAMES.items()):
        if (self._folder / old).exists():
          (self._folder / old).replace(self._folder / new)
    if (self._folder / descriptions.NAME).exists():
      descriptions.check_same(self._description, self._folder)
    else:
      _check_empty(self._folder)
      descriptions.write(self._folder, self._description)
    for number in range(self._description.num_shards):
      file = self._folder / shard_name(number)
      if file.exists():
        metadata = read_metadata(file)
        self._shards[number] = metadata.num_rows, _skipped(metadata)
    self._list_skipped()

  def _list_skipped(self) -> None:
    name = "path" if self._description.kind == "images" else "line"
    lines = [
      json.dumps({name: key, "reason": reason}) + "\n"
      for _, (_, skipped) in sorted(self._shards.items())
      for key, reason in skipped
    ]
    workdir.write_whole(self._folder / SKIPPED, "".join(lines))


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


def _skipped(metadata: pq.FileMetaData) -> Skipped:
  return json.loads((metadata.metadata or {}).get(_SKIPPED, b"[]"))
