"""The nearest rows by LanceDB: a database in a folder, read from the disk.

It holds no vectors in memory, filters by columns while it searches, takes
single rows in and out, and is built in minutes of a million rows
(docs/embeddings.md, which has what was measured). Rows are grouped around
centres (IVF); in a group each is known by a bit a dimension (RaBitQ,
arXiv:2405.12497), and the best are compared by all of their numbers.

Shape letters: Q queries, E width of an embedding, K results.
"""

import datetime
import itertools
import os
from typing import Any

import filelock
import numpy as np
import pyarrow as pa

from big_siglip import extras
from big_siglip.data.embedding_folder import (
  Reader,
)
from big_siglip.embeddings import filters
from big_siglip.embeddings.follow import (
  Difference,
  find_difference,
  made_of,
  search_each,
)
from big_siglip.errors import UserError
from big_siglip.progress import say, waiting

NAME = "_lancedb"  # The folder, in that of the embeddings.
_TABLE = "embeddings"
_MADE_OF = b"made_of"
_GROUP = 4096  # Rows around a centre.
_MIN_ROWS = 20_000  # Fewer are compared one by one, as fast.
_PROBED = 64  # Groups that are looked at; more where they hold too few rows.
_REFINED = 20  # Times the results, that are compared exactly.
_SAMPLED = 64  # Rows a centre that the centres are found by ...
_ROUNDS = 10  # ... in so many rounds.
_STALE = 0.2  # Share of new rows from which on the centres are found anew.


class Lance:
  """A table of the rows, kept beside the embeddings; an `index.Index`."""

  def __init__(self, reader: Reader):
    """Opens the table; makes it, or takes in what the folder has changed.

    Raises:
      UserError: lancedb is not installed, or the folder cannot be written.
    """
    self._reader = reader
    try:
      self._table = _open(_import(), reader)
    except (OSError, RuntimeError, ValueError) as error:
      reason = str(error).strip().splitlines()[0]
      raise UserError(f"{reader.folder / NAME}: {reason}") from error

  def search(
    self, queries: np.ndarray, top: int, where: str | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """See `Index.search`."""
    top = min(top, self._reader.num_rows)
    condition = where and filters.parse(where, self._reader.schema).sql

    def search(query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
      asked = self._table.search(query, vector_column_name="embedding")
      asked = asked.distance_type("cosine").select(["id", "_distance"])
      asked = asked.limit(top).refine_factor(_REFINED)
      # Few rows may pass a filter: then more groups are looked at.
      asked = asked.minimum_nprobes(_PROBED).maximum_nprobes(0)
      if condition:
        asked = asked.where(condition, prefilter=True)
      found = asked.to_arrow()
      return 1 - found["_distance"].to_numpy(), found["id"].to_numpy()

    return search_each(self._reader, queries, search, where)


def _import() -> Any:
  # Its engine names every file that it makes, on standard error.
  os.environ.setdefault("LANCEDB_LOG", "error")
  with extras.needed_by("--index=lancedb"):
    import lancedb
  return lancedb


def _open(lancedb: Any, reader: Reader) -> Any:
  """Returns the table, which has the rows of the folder and no others."""
  database = lancedb.connect(str(reader.folder / NAME))
  table = _find(database, reader)
  if table is not None and not _difference(table, reader).any:
    return table
  with filelock.FileLock(reader.folder / ".lancedb.lock"):
    table = _find(database, reader)  # Another program may have made it.
    if table is None:
      return _make(database, reader)
    difference = _difference(table, reader)
    if difference.any:
      _follow(table, reader, difference)
    return table


def _find(database: Any, reader: Reader) -> Any:
  """Returns the table that was made of this folder by this model, if any."""
  if not (reader.folder / NAME).exists():
    return None
  try:
    table = database.open_table(_TABLE)
  except ValueError:  # A program that was killed may have left the half of one.
    return None
  said = (table.schema.metadata or {}).get(_MADE_OF, b"").decode()
  if said != made_of(reader):
    say(f"{reader.folder / NAME}: is of other embeddings, and is made anew")
    return None
  return table


def _difference(table: Any, reader: Reader) -> Difference:
  ids = table.search().select(["id"]).to_arrow()["id"].to_numpy()
  return find_difference(reader, ids)


def _make(database: Any, reader: Reader) -> Any:
  everything = find_difference(reader, np.zeros(0, np.int64))
  tables = everything.tables(reader)
  first = next(tables)
  schema = first.schema.with_metadata({_MADE_OF: made_of(reader).encode()})
  batches = (
    batch
    for table in itertools.chain([first], tables)
    for batch in table.replace_schema_metadata(schema.metadata).to_batches()
  )
  table = database.create_table(
    _TABLE, pa.RecordBatchReader.from_batches(schema, batches), mode="overwrite"
  )
  _group(table)
  return table


def _follow(table: Any, reader: Reader, difference: Difference) -> None:
  """Takes rows out and in; the others stay as they are."""
  for ids in difference.gone_in_parts():
    table.delete(f"id in ({', '.join(map(str, ids))})")
  for rows in difference.tables(reader):
    table.add(rows)
  if len(difference.new) > _STALE * reader.num_rows or not table.list_indices():
    _group(table)
  with waiting("tidying the index"):
    # What another program may still read stays for a while.
    table.optimize(cleanup_older_than=datetime.timedelta(hours=1))


def _group(table: Any) -> None:
  """Groups the rows around centres, if they are many."""
  from lancedb.index import IvfRq

  count = table.count_rows()
  if count < _MIN_ROWS:
    return
  with waiting(f"grouping {count} rows", key=f"lancedb {count >> 16}"):
    table.create_index(
      "embedding",
      config=IvfRq(
        distance_type="cosine",
        num_partitions=count // _GROUP,
        sample_rate=_SAMPLED,
        max_iterations=_ROUNDS,
      ),
      replace=True,
    )
