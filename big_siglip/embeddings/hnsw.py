"""The nearest rows of a folder of embeddings, nearly all of them, at once.

An HNSW graph (arXiv:1603.09320) by faiss: of the libraries that have one,
faiss-cpu, usearch and hnswlib, it is the most widely used, is maintained by the
group that makes it, and one wheel serves all Pythons from 3.10 on (hnswlib has
none and must be compiled). The graph and all rows lie in memory.

Shape letters: Q queries, E width of an embedding, K results.
"""

import hashlib
import json
from typing import Any

import numpy as np

from big_siglip import extras
from big_siglip.data.embedding_description import (
  description_file,
)
from big_siglip.data.embedding_folder import (
  Reader,
)
from big_siglip.embeddings.search import choose, search_exactly
from big_siglip.errors import UserError
from big_siglip.progress import Progress, waiting

_INDEX, _STAMP = "_hnsw.faiss", "_hnsw.json"
_NEIGHBOURS = 32  # Of each row in the graph, on its lowest level twice as many.
_BUILD_WIDTH = 200  # Candidates kept while a row is added ...
_SEARCH_WIDTH = 256  # ... and while a query is answered.
_PASSING = 64  # Candidates that a filter is to let pass, at least.
_BLOCK = 16_384  # Rows added at once.


class Hnsw:
  """faiss's graph of all rows, in memory; an `index.Index`."""

  def __init__(self, reader: Reader):
    """Reads the graph, or makes and keeps it.

    It is made anew when a shard or the description has changed.

    Raises:
      UserError: faiss is not installed; the folder cannot be written, or holds
        what is not finite.
    """
    self._faiss = _import_faiss()
    self._reader, self._index = reader, _open(reader)

  def search(
    self, queries: np.ndarray, top: int, where: str | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """See `Index.search`.

    With a filter, few rows of those that the graph leads to may pass: so it is
    followed further, and where few pass at all, these are compared instead.
    """
    chosen = choose(self._reader, where)
    rows = np.ascontiguousarray(queries, np.float32)
    width = max(_SEARCH_WIDTH, 2 * top)
    parameters = self._faiss.SearchParametersHNSW(efSearch=width)
    if chosen is not None:
      places = np.flatnonzero(chosen)
      top = min(top, len(places))
      candidates = _PASSING * len(chosen) // max(len(places), 1)
      if len(places) <= candidates:  # As fast, and exact.
        return self._compare(rows, top, places)
      bits = np.packbits(chosen, bitorder="little")
      parameters.sel = self._faiss.IDSelectorBitmap(bits)
      parameters.efSearch = max(width, candidates)
    top = min(top, self._reader.num_rows)
    scores, numbers = self._index.search(rows, top, params=parameters)
    if (numbers < 0).any():
      return search_exactly(self._reader, queries, top, chosen=chosen)
    return scores, numbers

  def _compare(
    self, queries: np.ndarray, top: int, places: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Compares the rows at some places with each query."""
    if not np.isfinite(queries).all():
      raise UserError("the query's embedding is not finite")
    scores = queries @ self._index.reconstruct_batch(places).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(scores, order, 1), places[order]


def _open(reader: Reader) -> Any:
  faiss = _import_faiss()
  file, stamp = reader.folder / _INDEX, _stamp(reader)
  try:
    if json.loads((reader.folder / _STAMP).read_text()) == stamp:
      with waiting("reading the graph", after=4):
        return faiss.read_index(str(file))
  except (OSError, ValueError, RuntimeError):
    pass  # There is none, or it is damaged: it follows from the shards.
  index = _build(reader)
  partial = file.with_name(f".{_INDEX}.partial")
  try:
    # Without its stamp until it is whole.
    (reader.folder / _STAMP).unlink(missing_ok=True)
    with waiting("writing the graph", after=4):
      faiss.write_index(index, str(partial))
    partial.replace(file)
    (reader.folder / _STAMP).write_text(json.dumps(stamp))
  except (OSError, RuntimeError) as error:  # faiss's own are RuntimeErrors.
    raise UserError(f"{file}: not writable") from error
  return index


def _import_faiss() -> Any:
  with extras.needed_by("--index=hnsw"):
    import faiss
  return faiss


def _build(reader: Reader) -> Any:
  faiss = _import_faiss()
  index = faiss.IndexHNSWFlat(
    reader.description.width, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT
  )
  index.hnsw.efConstruction = _BUILD_WIDTH
  with Progress(reader.num_rows, "rows in the graph") as show:
    for rows in reader.blocks(_BLOCK):
      if not np.isfinite(rows).all():
        raise UserError(
          f"{reader.folder}: holds embeddings that are not finite, which a "
          "graph cannot hold; --index=exact passes them by"
        )
      index.add(np.ascontiguousarray(rows))
      show.add(len(rows))
  return index


def _stamp(reader: Reader) -> dict[str, Any]:
  """Returns what changes when the embeddings do."""
  text = description_file(reader.folder).read_bytes()
  sizes = [(file.name, file.stat()) for file in reader.shards]
  return {
    "description": hashlib.sha256(text).hexdigest(),
    "shards": [[name, s.st_size, s.st_mtime_ns] for name, s in sizes],
  }
