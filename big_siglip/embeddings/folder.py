"""A folder of embeddings: Parquet shards beside a description of them all.

    _embedding.json       see `Description`
    shard-000000.parquet  key, text, embedding of inputs 0 to shard_size - 1,
                          an id, and further columns (`AnyInputs.columns`) ...
    _skipped.jsonl        inputs that cannot be read, and why

_skipped.jsonl follows from the shards alone, so that a program that is killed
between the two loses nothing.

Names that begin with a line are passed by where a folder of Parquet files is
read: `pyarrow.parquet.read_table(FOLDER)` gives all rows.

Shape letters: N rows, E width of an embedding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import json
import pathlib
from typing import Any

import filelock
import jax
import numpy as np

from big_siglip.data.embedding_description import (
  Description,
  OLD_NAMES,
  shard_name,
  SKIPPED,
  staged_name,
)
from big_siglip.data.embedding_folder import (
  read_metadata,
)
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings.shards import (
  read_skipped,
  Rows,
  Skipped,
  write_shard,
)
from big_siglip.errors import UserError
from big_siglip.run import processes, workdir


class Writer:
  """Writes the shards of a folder; goes on where another writer ended."""

  def __init__(
    self, folder: pathlib.Path, description: Description, leads: bool = True
  ):
    """Makes the folder, or finds the shards that are there.

    Args:
      folder: a new one, or one of the same description.
      description: of what will be written.
      leads: of several processes that write other shards each, one does: it
        makes and describes the folder, before the others come.

    Raises:
      UserError: the folder was made otherwise, is damaged, cannot be written,
        or is being written.
    """
    self._folder = folder
    self._description = description
    self._shards = {}  # Number -> (rows, skipped).
    self._leads = leads
    self._lock = lock(folder) if leads else None
    try:
      self._go_on()
    except OSError as error:
      self.close()
      raise UserError(f"{folder}: not writable ({error.strerror})") from error
    except UserError:
      self.close()
      raise

  @property
  def missing(self) -> list[int]:
    """The numbers of the shards that are still to be written."""
    everything = self._description.shard_numbers
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
    texts: Sequence[str | None] | None,
    embeddings: np.ndarray,
    skipped: Skipped,
    ids: Sequence[int] | None = None,
    fields: Sequence[Mapping[str, Any]] | None = None,
  ) -> None:
    """Writes one shard.

    Args:
      shard: its number.
      keys: of its rows.
      texts: of its rows; None if they are of images.
      embeddings: NE.
      skipped: what was left out.
      ids: of its rows; None: those of its first inputs.
      fields: values of the further columns; None: there are none.

    Raises:
      UserError: the disk is full, or something else keeps it from being
        written.
    """
    if ids is None:
      first = self._description.shard(shard).start
      ids = range(first, first + len(keys))
    rows = Rows(ids, keys, texts, embeddings, fields or [{}] * len(keys))
    file = self._folder / shard_name(shard)
    write_shard(file, self._description, rows, skipped)
    self._shards[shard] = len(keys), list(skipped)
    if skipped and self._leads:
      self._list_skipped()

  def look_again(self) -> None:
    """Finds the shards that other processes have written."""
    self._find_shards()
    if self._leads:
      self._list_skipped()

  def close(self) -> None:
    """Lets other programs write here."""
    if self._lock is not None:
      self._lock.release()

  def _go_on(self) -> None:
    """Finds what is there, or says what will be."""
    if self._leads:
      finish(self._folder)
      if not (self._folder / descriptions.NAME).exists():
        _check_empty(self._folder)
        descriptions.write(self._folder, self._description)
    descriptions.check_same(self._description, self._folder)
    # An update has other shards; rows that were begun without ids have none.
    self._description = descriptions.read(self._folder)
    self.look_again()
    if self._description.numbers is not None and self.missing:
      raise UserError(
        f"{self._folder / shard_name(self.missing[0])}: is missing; --update "
        "makes its rows again"
      )

  def _find_shards(self) -> None:
    for number in self.missing:
      file = self._folder / shard_name(number)
      if file.exists():
        metadata = read_metadata(file)
        self._shards[number] = metadata.num_rows, read_skipped(metadata)

  def _list_skipped(self) -> None:
    skipped = [own for _, (_, own) in sorted(self._shards.items())]
    list_skipped(self._folder, self._description.kind, skipped)


def lock(folder: pathlib.Path) -> filelock.BaseFileLock:
  """Makes a folder and keeps other programs from writing there.

  Raises:
    UserError: another one does, or it is not writable.
  """
  held = filelock.FileLock(folder / ".lock")
  try:
    folder.mkdir(parents=True, exist_ok=True)
    held.acquire(timeout=0)
  except filelock.Timeout as error:
    raise UserError(f"{folder}: another program writes here") from error
  except OSError as error:
    raise UserError(f"{folder}: not writable ({error.strerror})") from error
  return held


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other programs from writing a folder that is there.

  What a program that was killed had nearly done is ended. Of several processes,
  which must all come here, the first does that.

  Raises:
    UserError: another program writes there, or it is not writable.
  """
  held = lock(folder) if jax.process_index() == 0 else None
  try:
    if held is not None:
      finish(folder)
    processes.wait_for_all("the folder is ours")
    yield
  finally:
    if held is not None:
      held.release()


def finish(folder: pathlib.Path) -> None:
  """Ends what a program that was killed had nearly done.

  Files get the names of now; those of an update that is described get theirs,
  and shards that it has not go.

  Raises:
    UserError: it is not writable.
  """
  try:
    _finish(folder)
  except OSError as error:
    raise UserError(f"{folder}: not writable ({error.strerror})") from error


def _finish(folder: pathlib.Path) -> None:
  if descriptions.description_file(folder).name in OLD_NAMES.values():
    # The description last: with it the folder is one of the new kind.
    for new, old in reversed(OLD_NAMES.items()):
      if (folder / old).exists():
        (folder / old).replace(folder / new)
  if not (folder / descriptions.NAME).exists():
    return
  described = descriptions.read(folder)
  if not described.update:
    return
  names = {shard_name(number) for number in described.shard_numbers}
  for number in described.shard_numbers:
    staged = folder / staged_name(number, described.update)
    if staged.exists():
      staged.replace(folder / shard_name(number))
  for file in folder.glob("shard-*.parquet"):
    if file.name not in names:
      file.unlink()


def list_skipped(
  folder: pathlib.Path, kind: str, skipped: Iterable[Skipped]
) -> None:
  """Writes _skipped.jsonl, of what each shard has left out."""
  name = "path" if kind == "images" else "line"
  lines = [
    json.dumps({name: key, "reason": reason}) + "\n"
    for own in skipped
    for key, reason, *_ in own
  ]
  workdir.write_whole(folder / SKIPPED, "".join(lines))


def _check_empty(folder: pathlib.Path) -> None:
  """Refuses shards whose description was lost: whose they are is not known."""
  if any(folder.glob("shard-*.parquet")):
    raise UserError(
      f"{folder}: holds shards but no {descriptions.NAME}; name another folder"
    )
