"""What has changed since a folder of embeddings was made.

A file is the same while its size and the time it was written are; where the
time alone is another, its bytes are compared, by their hash. Examples of data
sets have no such time: their bytes are compared always. So are texts.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
import json
import pathlib
from typing import NamedTuple

import jax
import pyarrow.parquet as pq

from big_siglip.data.embedding_description import (
  Description,
  shard_file,
)
from big_siglip.data.embedding_folder import (
  read_metadata,
)
from big_siglip.embeddings.folder import read_skipped
from big_siglip.embeddings.given import AnyInputs, Seen, STAMP, Stamp
from big_siglip.progress import Progress
from big_siglip.run import processes

Name = tuple[str, int]  # A key, and how many inputs before it have the same.


class Row(NamedTuple):
  """A row of a shard, or an input that the shard left out.

  Attributes:
    file: of the shard.
    row: its number there; -1: it was left out.
    id: of the row.
    stamp: of the input.
    said: a hash of all else that the row says, in this process.
    reason: why it was left out, or "".
  """

  file: pathlib.Path
  row: int
  id: int
  stamp: Stamp
  said: int
  reason: str = ""


@dataclasses.dataclass(frozen=True)
class Changes:
  """A folder, compared with inputs.

  Attributes:
    shards: the names that each shard had, in order.
    rows: what it says of them.
    seen: what the inputs are now.
    names: of the inputs.
    same: numbers of the inputs that need not be embedded again.
  """

  shards: dict[int, list[Name]]
  rows: dict[Name, Row]
  seen: Sequence[Seen]
  names: list[Name]
  same: set[int]

  def stays(self, index: int) -> bool:
    """Whether the row of an input stays as it is, in everything."""
    if index not in self.same:
      return False
    row = self.rows[self.names[index]]
    return bool(row.reason) or row.said == _said(self.seen[index])


def compare(
  folder: pathlib.Path,
  description: Description,
  inputs: AnyInputs,
  num_threads: int,
) -> Changes:
  """Compares what a folder has with what it is to have.

  All processes must call it together: they share the reading.

  Args:
    folder: of embeddings.
    description: what it says of itself.
    inputs: what it is to have.
    num_threads: threads that read.
  """
  shards, rows = _read(folder, description, list(inputs.look(0).fields))
  with ThreadPoolExecutor(num_threads) as threads:
    with Progress(len(inputs), f"{inputs.kind} looked at") as show:
      seen = []
      for one in threads.map(inputs.look, range(len(inputs))):
        seen.append(one)
        show.add(1)
    names = _named([one.key for one in seen])
    same, unsure = set(), []
    for index, (name, one) in enumerate(zip(names, seen, strict=True)):
      found = _is_same(rows.get(name), one.stamp)
      if found:
        same.add(index)
      elif found is None:
        unsure.append(index)
    digests = _digests(inputs, unsure, threads)
  same |= {
    index
    for index in unsure
    if digests[index] == rows[names[index]].stamp.sha256
  }
  return Changes(shards, rows, seen, names, same)


def _read(
  folder: pathlib.Path, description: Description, fields: Sequence[str]
) -> tuple[dict[int, list[Name]], dict[Name, Row]]:
  """Returns the names in each shard, and their rows."""
  shards, rows, count = {}, {}, {}
  for number in description.shard_numbers:
    file = shard_file(folder, description, number)
    if not file.exists():
      continue
    names = []
    for key, row in read_shard(file, description.kind, fields):
      count[key] = count.get(key, -1) + 1
      names.append((key, count[key]))
      rows[names[-1]] = row
    shards[number] = names
  return shards, rows


def read_shard(
  file: pathlib.Path, kind: str, fields: Sequence[str] = ()
) -> list[tuple[str, Row]]:
  """Returns (key, row) of all rows of a shard, then of what it left out."""
  metadata = read_metadata(file)
  there = metadata.schema.to_arrow_schema().names
  wanted = ["key", "text", "id", *STAMP, *fields]
  columns = [name for name in dict.fromkeys(wanted) if name in there]
  found = pq.read_table(file, columns=columns).to_pydict()
  nothing = [None] * metadata.num_rows
  stamps = [found.get(name, nothing) for name in STAMP]
  if kind == "texts" and "sha256" not in there:  # Made before there were any.
    stamps[-1] = [_sha256(text) for text in found["text"]]
  says = [found["text"], *(found.get(name, nothing) for name in fields)]
  ids = found.get("id", nothing)
  rows = [
    (key, Row(file, row, -1 if id_ is None else id_, Stamp(*stamp), hash(said)))
    for row, (key, id_, stamp, said) in enumerate(
      zip(
        found["key"],
        ids,
        zip(*stamps, strict=True),
        zip(*says, strict=True),
        strict=True,
      )
    )
  ]
  for key, reason, *stamp in read_skipped(metadata):
    known = Stamp(*stamp) if stamp else Stamp(None, None, None)
    rows.append((key, Row(file, -1, -1, known, 0, reason)))
  return rows


def _said(seen: Seen) -> int:
  return hash((seen.text, *seen.fields.values()))


def _named(keys: Sequence[str]) -> list[Name]:
  count: dict[str, int] = {}
  names = []
  for key in keys:
    count[key] = count.get(key, -1) + 1
    names.append((key, count[key]))
  return names


def _is_same(row: Row | None, now: Stamp | None) -> bool | None:
  """Whether an input is what it was; None: its bytes must be read for that."""
  if row is None:
    return False
  before = row.stamp
  if now is None or before.sha256 is None:
    # What cannot be read now and could not be read then; or no stamp was kept.
    return now is None and bool(row.reason) and before == (None, None, None)
  if now.sha256 is not None:
    return now.sha256 == before.sha256
  if now.file_bytes != before.file_bytes:
    return False
  return True if now.file_mtime_ns == before.file_mtime_ns else None


def _digests(
  inputs: AnyInputs, indices: Sequence[int], threads: ThreadPoolExecutor
) -> Mapping[int, str | None]:
  """Returns the hashes of some inputs; each process reads some of them."""
  if not indices:
    return {}
  own = indices[jax.process_index() :: jax.process_count()]
  found = {}
  with Progress(len(own), f"{inputs.kind} compared") as show:
    for index, digest in zip(own, threads.map(inputs.digest, own), strict=True):
      found[str(index)] = digest
      show.add(1)
  parts = processes.gather(json.dumps(found))
  return {int(k): v for part in parts for k, v in json.loads(part).items()}


def _sha256(text: str) -> str:
  data = text.encode("utf-8", "surrogateescape")
  return hashlib.sha256(data).hexdigest()
