"""A folder of embeddings, brought up to what its inputs are now.

Shards whose rows all stay are not touched. The others are written beside the
old ones, under hidden names; what was embedded before is copied, whatever it is
called now. When all are there the description names them, and from that moment
on the folder is the new one (`data.embedding_folder`). A program that is killed
before leaves the old one, and what it has embedded is found again.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import pathlib
import re
from typing import Any

import jax
import numpy as np

from big_siglip.data.embedding_description import (
  Description,
  shard_file,
  staged_name,
)
from big_siglip.data.embedding_folder import (
  read_metadata,
)
from big_siglip.embeddings import changes, shards
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings import folder as folders
from big_siglip.embeddings.given import AnyInputs
from big_siglip.embeddings.kept import Kept
from big_siglip.errors import UserError

_STAGED = re.compile(r"\.shard-\d+\.parquet\.([0-9a-f]{16})")


@dataclasses.dataclass(frozen=True)
class Counts:
  """How many inputs an update finds.

  Attributes:
    added: that the folder had not.
    changed: whose bytes are others than before.
    removed: that are not there any more.
    same: that stay, though what a table says of them may have changed.
  """

  added: int
  changed: int
  removed: int
  same: int


class Update:
  """What is to be written.

  Attributes:
    shards: numbers of the shards that are still to be written, with those of
      their inputs.
    before: what need not be embedded again.
    counts: of what was found.
    token: names the update: two processes plan the same one, or other ones.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    description: Description,
    inputs: AnyInputs,
    num_threads: int,
  ):
    """Compares the folder with the inputs; call it within `folder.writing`.

    Nothing of the folder changes yet. All processes must call it together.

    Args:
      folder: of embeddings.
      description: of what it will be.
      inputs: what it will have.
      num_threads: threads that read.

    Raises:
      UserError: the folder is of another model, dtype or kind; it has nothing
        of these inputs; it is damaged.
    """
    self._folder = folder
    self._leads = jax.process_index() == 0
    descriptions.check_update(description, folder)
    self._old = descriptions.read(folder)
    self._changes = changes.compare(folder, self._old, inputs, num_threads)
    self._check_common(inputs)
    self._new, ids, written = self._plan(description)
    self.token = self._new.update
    self.before = Kept(self._changes, ids, self._embedded())
    self.counts = self._count()
    self.shards = {
      number: rows
      for number, rows in written.items()
      if not self._staged(number).exists()
    }

  @property
  def is_old(self) -> bool:
    """Whether no row says what it was made of: a folder of long ago."""
    return self._old.columns is None and self._old.kind == "images"

  @property
  def num_new(self) -> int:
    """How many inputs are to be read, and embedded unless they are known."""
    same = self._changes.same
    return sum(i not in same for rows in self.shards.values() for i in rows)

  def write(
    self,
    shard: int,
    keys: Sequence[str],
    texts: Sequence[str | None] | None,
    embeddings: np.ndarray,
    skipped: shards.Skipped,
    ids: Sequence[int] | None = None,
    fields: Sequence[Mapping[str, Any]] | None = None,
  ) -> None:
    """Writes one shard beside the old one; see `folder.Writer.write`."""
    rows = shards.Rows(ids or [], keys, texts, embeddings, fields or [])
    shards.write_shard(self._staged(shard), self._new, rows, skipped)

  def commit(self) -> tuple[int, int]:
    """Makes the folder the new one; all shards must be there.

    Returns:
      How many rows it has, and how many inputs it left out.

    Raises:
      UserError: it cannot be written.
    """
    try:
      if self._leads and self._new != self._old:
        descriptions.write(self._folder, self._new)
        folders.finish(self._folder)
      metadata = [
        read_metadata(shard_file(self._folder, self._new, number))
        for number in self._new.shard_numbers
      ]
      skipped = [shards.read_skipped(one) for one in metadata]
      if self._leads:
        folders.list_skipped(self._folder, self._new.kind, skipped)
        for file in self._folder.glob(".shard-*"):  # Of updates before.
          file.unlink()
    except OSError as error:
      raise UserError(
        f"{self._folder}: not writable ({error.strerror})"
      ) from error
    return sum(one.num_rows for one in metadata), sum(map(len, skipped))

  def _check_common(self, inputs: AnyInputs) -> None:
    """Refuses inputs that are others altogether: a slip as a rule."""
    found = self._changes
    if found.rows and not any(name in found.rows for name in found.names):
      raise UserError(
        f"{self._folder}: has none of the {len(inputs)} {inputs.kind} of "
        f"{inputs.path}, and was made of {self._old.inputs}; name that, or "
        "another --output"
      )

  def _plan(
    self, made: Description
  ) -> tuple[Description, dict[int, int], dict[int, list[int]]]:
    """Returns the new description, ids of inputs, and shards to be written."""
    found, old = self._changes, self._old
    index_of = {name: i for i, name in enumerate(found.names)}
    new = [i for i, name in enumerate(found.names) if name not in found.rows]
    layout = made.columns != old.columns
    members, written = {}, {}
    for number, names in found.shards.items():
      rows = [index_of[name] for name in names if name in index_of]
      members[number] = rows
      if layout or len(rows) < len(names) or not all(map(found.stays, rows)):
        written[number] = rows
    last = max(members, default=-1)
    # New ones fill what must be written anyway, and the last one.
    for number in dict.fromkeys([*written, *members.keys() & {last}]):
      room = max(old.shard_size - len(members[number]), 0)
      if room and new:
        members[number] += new[:room]
        written[number] = members[number]
        new = new[room:]
    for number, start in enumerate(
      range(0, len(new), old.shard_size), last + 1
    ):
      written[number] = members[number] = new[start : start + old.shard_size]
    members = {number: rows for number, rows in members.items() if rows}
    written = {number: rows for number, rows in written.items() if rows}
    ids, next_id = self._give_ids(written, layout)
    changed = written or list(members) != list(old.shard_numbers)
    description = dataclasses.replace(
      made,
      shard_size=old.shard_size,
      numbers=list(members) if changed else old.numbers,
      next_id=next_id if changed else old.next_id,
      update=old.update,
    )
    if changed:
      plan = (description, sorted(ids.items()), written)
      description = dataclasses.replace(description, update=self._token(plan))
    return description, ids, written

  def _give_ids(
    self, written: Mapping[int, Sequence[int]], layout: bool
  ) -> tuple[dict[int, int], int]:
    """Returns the ids of inputs: rows that do not stay get new ones."""
    found, ids = self._changes, {}
    next_id = max(self._old.next_id, self._old.count)
    for rows in written.values():
      for index in rows:
        row = found.rows.get(found.names[index])
        if row and row.id >= 0 and not layout and found.stays(index):
          ids[index] = row.id
        else:
          ids[index] = next_id
          next_id += 1
    return ids, next_id

  def _token(self, plan: Any) -> str:
    stamps = [seen.stamp for seen in self._changes.seen]
    return hashlib.sha256(repr((plan, stamps)).encode()).hexdigest()[:16]

  def _count(self) -> Counts:
    found = self._changes
    there = sum(name in found.rows for name in found.names)
    return Counts(
      added=len(found.names) - there,
      changed=there - len(found.same),
      removed=len(found.rows) - there,
      same=len(found.same),
    )

  def _embedded(self) -> list[changes.Row]:
    """Returns all rows that there are, with those of an update before.

    It was killed, and the inputs have changed since, or this would be the same
    update.
    """
    rows = list(self._changes.rows.values())
    for file in sorted(self._folder.glob(".shard-*")):
      match = _STAGED.fullmatch(file.name)
      if match and match[1] != self.token:
        rows += [row for _, row in changes.read_shard(file, self._new.kind)]
    return rows

  def _staged(self, number: int) -> pathlib.Path:
    return self._folder / staged_name(number, self.token)
