"""A database of the rows of a folder of embeddings follows the folder.

Rows have ids that they keep, and a row that changes in anything gets another
one (`Reader.ids`). So what a database is to take out and in follows from the
ids that it has, whatever happened in between.

Shape letters: Q queries, K results.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import json

import numpy as np
import pyarrow as pa

from big_siglip.data.embedding_folder import (
  Reader,
)
from big_siglip.errors import UserError
from big_siglip.progress import Progress, say

_BLOCK = 4096  # Rows that are taken in at once.
_PART = 10_000  # Ids that are taken out at once.

# A query [E] -> its cosines [K] and ids [K], the best first.
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Difference:
  """What a database has to change.

  Attributes:
    gone: ids that the folder has not, or not any more.
    new: numbers of the rows that the database has not.
  """

  gone: np.ndarray
  new: np.ndarray

  @property
  def any(self) -> bool:
    """Whether there is something to change."""
    return bool(len(self.gone) or len(self.new))

  def gone_in_parts(self) -> Iterator[list[int]]:
    """Yields the ids to be taken out, so many that a request may hold them."""
    for start in range(0, len(self.gone), _PART):
      yield self.gone[start : start + _PART].tolist()

  def tables(self, reader: Reader) -> Iterator[pa.Table]:
    """Yields the rows to be taken in, and says how far it is.

    Those whose embeddings are not finite are left out.
    """
    chosen = np.zeros(reader.num_rows, bool)
    chosen[self.new] = True
    left_out = 0
    with Progress(len(self.new), "rows taken into the index") as show:
      for table in reader.tables(_BLOCK, chosen):
        values = table["embedding"].combine_chunks().flatten().to_numpy()
        finite = np.isfinite(values.reshape(len(table), -1)).all(axis=1)
        left_out += int((~finite).sum())
        yield table if finite.all() else table.filter(pa.array(finite))
        show.add(len(table))
    if left_out:
      say(f"{reader.folder}: {left_out} rows are not finite, and not found")


def find_difference(reader: Reader, ids: np.ndarray) -> Difference:
  """Compares the ids that a database has with those of a folder."""
  return Difference(
    np.setdiff1d(ids, reader.ids), np.flatnonzero(~np.isin(reader.ids, ids))
  )


def made_of(reader: Reader) -> str:
  """Returns what names the model of a folder, and the columns of its rows.

  A database that says something else was made of other embeddings.
  """
  made = reader.description
  columns = [(field.name, str(field.type)) for field in reader.schema]
  text = json.dumps([made.parameters, made.preprocessing, columns])
  return hashlib.sha256(text.encode()).hexdigest()


def search_each(
  reader: Reader, queries: np.ndarray, search: Search, where: str | None
) -> tuple[np.ndarray, np.ndarray]:
  """Asks a database for each query; see `Index.search`."""
  if not np.isfinite(queries).all():
    raise UserError("the query's embedding is not finite")
  found = []
  for query in np.asarray(queries, np.float32):
    scores, ids = search(query)
    numbers = reader.numbers_of(ids)
    found.append((scores[numbers >= 0], numbers[numbers >= 0]))
  most = max((len(numbers) for _, numbers in found), default=0)
  if not most:
    raise UserError(
      f"--where={where}: is true of none of the rows"
      if where
      else f"{reader.folder}: none of its embeddings is finite"
    )
  scores = np.full((len(found), most), -np.inf, np.float32)
  numbers = np.full((len(found), most), -1, np.int64)
  for row, (own, their) in enumerate(found):
    scores[row, : len(own)], numbers[row, : len(own)] = own, their
  return scores, numbers
