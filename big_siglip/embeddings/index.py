"""The nearest rows of a folder of embeddings, by whatever finds them.

    reader = embeddings.Reader(folder)
    found = index.open_index(reader, index.Choice("lancedb"), say=print)
    scores, numbers = found.search(queries, 10, where="width > 100")
    rows = reader.records(numbers[0])  # key, text and further columns of each.

The command line and the page open one so, with what --index says. It is made
when it is first opened, and follows the folder when it is opened after an
update of it; `reader.is_current` says when to open both anew.

Shape letters: Q queries, E width of an embedding, K results.
"""

from collections.abc import Callable
import dataclasses
from typing import Protocol

from absl import logging
import numpy as np

from big_siglip.data.embedding_description import check_whole
from big_siglip.data.embedding_folder import Reader
from big_siglip.embeddings import milvus
from big_siglip.embeddings.hnsw import Hnsw
from big_siglip.embeddings.lance import Lance
from big_siglip.embeddings.search import Exact
from big_siglip.errors import UserError

NAMES = ("exact", "hnsw", "lancedb", "milvus")

Say = Callable[[str], None]


class Index(Protocol):
  """The rows of a folder, asked for those nearest to a query."""

  def search(
    self, queries: np.ndarray, top: int, where: str | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest rows of each query.

    Args:
      queries: QE float32 of length 1.
      top: results of each query; at most so many.
      where: only rows of which this is true, such as "width > 100".

    Returns:
      Cosines QK float32, the highest first, and the rows' numbers QK, as
      `Reader.records` takes them. K is less than `top` where no query has so
      many; where one has fewer than another, its last numbers are -1.

    Raises:
      UserError: the filter is malformed or names a column that is not there; no
        row can be found.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Choice:
  """How a folder is searched.

  Attributes:
    name: one of `NAMES`.
    database: of "milvus" the server's address.
    collection: its name there; "": that of the folder.
  """

  name: str = "exact"
  database: str = ""
  collection: str = ""

  def check(self) -> None:
    """Raises a `UserError` unless there is such an index."""
    if self.name not in NAMES:
      raise UserError(
        f"--index={self.name}: must be {', '.join(NAMES[:-1])} or {NAMES[-1]}"
      )
    if self.name == "milvus":
      milvus.check(self.database, self.collection)
    elif self.database or self.collection:
      flag = "database" if self.database else "collection"
      raise UserError(
        f"--{flag}={getattr(self, flag)}: belongs to --index=milvus"
      )


def open_index(
  reader: Reader, choice: Choice | None = None, say: Say = logging.warning
) -> Index:
  """Returns an index of a folder's rows, made or brought up to date.

  Args:
    reader: of the folder.
    choice: how it is searched; None: exactly.
    say: told of rows that are left out.

  Raises:
    UserError: there is no such index; its package is not installed; the folder
      cannot be written; the database cannot be reached, or is of other rows.
  """
  check_whole(reader.description, reader.folder)
  choice = choice or Choice()
  choice.check()
  if choice.name == "hnsw":
    return Hnsw(reader)
  if choice.name == "lancedb":
    return Lance(reader)
  if choice.name == "milvus":
    return milvus.Milvus(reader, choice.database, choice.collection)
  return Exact(reader, say)
