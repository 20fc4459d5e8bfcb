"""The nearest rows by Milvus: a database on other machines, as many as needed.

It holds a collection for the folder, which follows it as the embedded database
does. Of the servers for this it is the one whose parts (storage, indexing,
searching) each grow by themselves. Rows lie in HNSW graphs, and filters are
applied while these are searched.

Shape letters: Q queries, E width of an embedding, K results.
"""

from collections.abc import Iterator
import contextlib
import json
import logging
import os
import re
from typing import Any

import filelock
import numpy as np
import pyarrow as pa

from big_siglip import extras
from big_siglip.data.embedding_folder import (
  Reader,
)
from big_siglip.embeddings import filters, milvus_names
from big_siglip.embeddings.follow import (
  Difference,
  find_difference,
  made_of,
  search_each,
)
from big_siglip.errors import UserError
from big_siglip.progress import Progress, say, waiting

_SECONDS = 10  # Until a server that does not answer is given up.
_SENT = 16 << 20  # Bytes of embeddings in a request.
_LISTED = 16_000  # Ids in an answer.
_TEXT = 65_535  # Bytes of a text; what is longer is cut.
_NEIGHBOURS = 16  # Of each row in the graph.
_BUILD_WIDTH = 200  # Candidates kept while a row is added ...
_SEARCH_WIDTH = 256  # ... and while a query is answered ...
_FILTERED = 4  # ... by a filter, which few may pass, so many times as many.
_WIDEST = 32_768  # Candidates that a server takes.
_TOKEN = "MILVUS_TOKEN"  # Of the environment: "user:password", or a key.


class Milvus:
  """A collection of the rows on a server; an `index.Index`."""

  def __init__(self, reader: Reader, database: str, collection: str = ""):
    """Connects; makes the collection, or takes in what the folder has changed.

    Args:
      reader: of the folder.
      database: the server's address, such as http://localhost:19530.
      collection: its name there; "": the folder's.

    Raises:
      UserError: pymilvus is not installed; the server cannot be reached, or
        refuses; the collection is of other embeddings.
    """
    self._reader, self._database = reader, database
    self._name = collection or _name_of(reader)
    with self._errors():
      self._client = _connect(database)
      with filelock.FileLock(reader.folder / ".milvus.lock"):
        self._open()

  def search(
    self, queries: np.ndarray, top: int, where: str | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """See `Index.search`."""
    top = min(top, self._reader.num_rows)
    condition = filters.parse(where, self._reader.schema) if where else None
    width = max(_SEARCH_WIDTH, 2 * top) * (_FILTERED if condition else 1)

    def search(query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
      (hits,) = self._client.search(
        self._name,
        [query],
        anns_field="embedding",
        filter=condition.milvus if condition else "",
        limit=top,
        search_params={
          "metric_type": "COSINE",
          "params": {"ef": min(width, _WIDEST)},
        },
      )
      scores = np.array([hit["distance"] for hit in hits], np.float32)
      return scores, np.array([hit["id"] for hit in hits], np.int64)

    with self._errors():
      return search_each(self._reader, queries, search, where)

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    """Makes one line of what the server, or the way to it, has to say."""
    with extras.needed_by("--index=milvus"):
      from pymilvus import MilvusException
    try:
      yield
    except MilvusException as error:
      reason = str(error.message).strip().splitlines()[0]
      raise UserError(f"--database={self._database}: {reason}") from error

  def _open(self) -> None:
    if not self._find():
      self._make()
      return
    # One that was killed while it made this may have left it without a graph.
    if not self._client.list_indexes(self._name):
      self._group()
    self._client.load_collection(self._name)
    difference = find_difference(self._reader, self._ids())
    if not difference.any:
      return
    for gone in difference.gone_in_parts():
      self._client.delete(self._name, ids=gone)
    self._take_in(difference)
    # Strong: what was sent can be found from now on.
    self._client.query(
      self._name, output_fields=["count(*)"], consistency_level="Strong"
    )

  def _find(self) -> bool:
    """Whether the collection is there, made of this folder by this model."""
    if not self._client.has_collection(self._name):
      return False
    there = self._client.describe_collection(self._name)
    here = _describe(self._reader)
    try:
      said = json.loads(there["description"])
    except ValueError:
      said = {}
    named = f"--database={self._database}: its collection {self._name!r}"
    other = "name another --collection, or drop that one there"
    if not isinstance(said, dict) or said.keys() != here.keys():
      raise UserError(f"{named} was not made by big-siglip; {other}")
    for key in ("width", "parameters", "inputs"):
      if said[key] != here[key]:
        raise UserError(
          f"{named} has {key}={said[key]}, and {self._reader.folder} "
          f"{here[key]}; {other}"
        )
    if said != here:  # Other columns: an update has brought them.
      say(f"{named[2:]} has other columns, and is made anew")
      self._client.drop_collection(self._name)
      return False
    return True

  def _make(self) -> None:
    from pymilvus import DataType

    schema = self._client.create_schema(
      auto_id=False, description=json.dumps(_describe(self._reader))
    )
    schema.add_field("id", DataType.INT64, is_primary=True)
    width = self._reader.description.width
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=width)
    for field in _columns(self._reader):
      schema.add_field(milvus_names.has_value(field.name), DataType.BOOL)
      if field.name == "id":
        continue
      kind = getattr(DataType, _kind(field.type))
      more = {"max_length": _TEXT} if kind == DataType.VARCHAR else {}
      schema.add_field(milvus_names.field(field.name), kind, **more)
    self._client.create_collection(self._name, schema=schema)
    self._take_in(find_difference(self._reader, np.zeros(0, np.int64)))
    self._group()
    self._client.load_collection(self._name)

  def _group(self) -> None:
    """Makes the graph of what is there; later rows get theirs by themselves."""
    index = self._client.prepare_index_params()
    index.add_index(
      "embedding",
      index_type="HNSW",
      metric_type="COSINE",
      params={"M": _NEIGHBOURS, "efConstruction": _BUILD_WIDTH},
    )
    with waiting(f"the database groups {self._reader.num_rows} rows"):
      self._client.flush(self._name)
      self._client.create_index(self._name, index)

  def _ids(self) -> np.ndarray:
    """Returns the ids that the collection has."""
    asked = self._client.query_iterator(
      self._name,
      batch_size=_LISTED,
      output_fields=["id"],
      consistency_level="Strong",
    )
    ids = []
    with Progress(None, "rows of the database compared") as show:
      while rows := asked.next():
        ids.append(np.array([row["id"] for row in rows], np.int64))
        show.add(len(rows))
    asked.close()
    return np.concatenate([np.zeros(0, np.int64), *ids])

  def _take_in(self, difference: Difference) -> None:
    width = self._reader.description.width
    size = max(_SENT // (4 * width), 1)
    for table in difference.tables(self._reader):
      for start in range(0, len(table), size):
        rows = _rows(table.slice(start, size), self._reader)
        # Or a row would be there twice that a program before had sent, which
        # was killed.
        self._client.upsert(self._name, rows)


def check(database: str, collection: str) -> None:
  """Raises a `UserError` unless both may be what they are to be."""
  if not re.match(r"(https?|tcp)://.", database):
    raise UserError(
      f"--index=milvus: --database={database}: must be a server's address, "
      "such as http://localhost:19530"
    )
  if collection and not re.fullmatch(r"[A-Za-z_]\w*", collection, re.ASCII):
    raise UserError(
      f"--collection={collection}: must be letters, digits and underscores, "
      "and begin with no digit"
    )


def _connect(database: str) -> Any:
  from pymilvus import MilvusClient

  # What it warns of is told as an error or goes by.
  logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
  with waiting(f"connecting to {database}"):
    return MilvusClient(
      database, token=os.environ.get(_TOKEN, ""), timeout=_SECONDS
    )


def _name_of(reader: Reader) -> str:
  name = re.sub(r"\W", "_", reader.folder.resolve().name, flags=re.ASCII)
  return f"_{name}" if not name or name[0].isdigit() else name


def _describe(reader: Reader) -> dict[str, Any]:
  """Returns what a collection says of itself."""
  made = reader.description
  return {
    "width": made.width,
    "parameters": made.parameters,
    "inputs": made.inputs,
    "made_of": made_of(reader),
  }


def _columns(reader: Reader) -> list[pa.Field]:
  """Returns the columns that filters may name."""
  return [field for field in reader.schema if field.name != "embedding"]


def _kind(column: pa.DataType) -> str:
  """Returns the name of Milvus's type for a column."""
  if pa.types.is_boolean(column):
    return "BOOL"
  if pa.types.is_integer(column):
    return "INT64"
  return "DOUBLE" if pa.types.is_floating(column) else "VARCHAR"


def _rows(table: pa.Table, reader: Reader) -> list[dict[str, Any]]:
  """Returns rows as the client takes them; what is empty gets any value."""
  width = reader.description.width
  vectors = table["embedding"].combine_chunks().flatten().to_numpy()
  vectors = vectors.reshape(-1, width).astype(np.float32)
  rows = [
    {"id": id_, "embedding": vector}
    for id_, vector in zip(table["id"].to_pylist(), vectors, strict=True)
  ]
  for field in _columns(reader):
    kind = _kind(field.type)
    empty = {"VARCHAR": "", "BOOL": False, "DOUBLE": 0.0}.get(kind, 0)
    name, has = (
      milvus_names.field(field.name),
      milvus_names.has_value(field.name),
    )
    for row, value in zip(rows, table[field.name].to_pylist(), strict=True):
      row[has] = value is not None
      row[name] = empty if value is None else value
      if kind == "VARCHAR":
        text = str(row[name]).encode()[:_TEXT]
        row[name] = text.decode(errors="ignore")
  return rows
