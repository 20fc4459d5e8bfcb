"""The nearest rows of a folder of embeddings, exactly, on the devices.

Shape letters: Q queries, B rows of a block, E width of an embedding, K results.
"""

from collections.abc import Callable

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from big_siglip.data.embedding_folder import (
  Reader,
)
from big_siglip.embeddings import filters
from big_siglip.errors import UserError

BLOCK = 16_384  # Rows on a device at once.
_NAMED = 5  # Rows that are not finite.


class Exact:
  """All rows, compared with each query; an `index.Index`."""

  def __init__(
    self, reader: Reader, say: Callable[[str], None] = logging.warning
  ):
    """See `search_exactly`."""
    self._reader, self._say = reader, say

  def search(
    self, queries: np.ndarray, top: int, where: str | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """See `Index.search`."""
    chosen = choose(self._reader, where)
    return search_exactly(
      self._reader, queries, top, say=self._say, chosen=chosen
    )


def choose(reader: Reader, where: str | None) -> np.ndarray | None:
  """Returns bool [N]: the rows that a filter lets pass; None: all of them.

  Raises:
    UserError: the filter is malformed, or lets none pass.
  """
  if where is None:
    return None
  chosen = reader.matching(filters.parse(where, reader.schema).arrow)
  if not chosen.any():
    raise UserError(f"--where={where}: is true of none of the rows")
  return chosen


def search_exactly(
  reader: Reader,
  queries: np.ndarray,
  top: int,
  block: int = BLOCK,
  say: Callable[[str], None] = logging.warning,
  chosen: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Compares each query with all rows; memory does not grow with the rows.

  Args:
    reader: of the folder.
    queries: QE float32 of length 1.
    top: results of each query; at most so many.
    block: rows that are compared at once.
    say: told of rows that are not finite.
    chosen: bool [N], the rows that are compared; None: all.

  Returns:
    Cosines QK float32, the highest first, and the rows' numbers QK; of equal
    ones the first row first. Rows that are not finite are not ranked: K is less
    where too few others are left.

  Raises:
    UserError: a query is not finite, or no row is.
  """
  if not np.isfinite(queries).all():
    raise UserError("the query's embedding is not finite")
  top = min(top, reader.num_rows)
  block = max(min(block, reader.num_rows), top)
  scores = jnp.full((len(queries), top), -jnp.inf)
  best = scores, jnp.zeros(scores.shape, jnp.int32)
  on_device, start, bad = jnp.asarray(queries), 0, []
  for rows in reader.blocks(block):
    count = len(rows)
    finite = np.isfinite(rows).all(axis=1)
    bad += (start + np.flatnonzero(~finite)).tolist()
    rows = np.pad(rows, [(0, block - count), (0, 0)])
    good = np.zeros(block, bool)
    good[:count] = finite
    if chosen is not None:
      good[:count] &= chosen[start : start + count]
    # Two blocks at most: one compared, one read from the disk meanwhile.
    previous = best
    best = _merge(best, on_device, rows, start, good)
    jax.block_until_ready(previous)
    start += count
  if bad:
    names = ", ".join(key for key, _ in reader.rows(bad[:_NAMED]))
    say(
      f"{reader.folder}: {len(bad)} of {reader.num_rows} embeddings are not "
      f"finite, and are not ranked: {names}{', ...' * (len(bad) > _NAMED)}"
    )
  found = int(np.isfinite(best[0][:1]).sum())
  if not found:
    raise UserError(f"{reader.folder}: none of its embeddings is finite")
  return np.asarray(best[0])[:, :found], np.asarray(best[1])[:, :found]


@jax.jit
def _merge(best, queries, rows, start, good):
  """Returns the best of what was found before and of the good more rows."""
  # A GPU or TPU would round to fewer bits otherwise, and mix up neighbours.
  scores = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
  numbers = jnp.arange(len(rows), dtype=jnp.int32)[None]
  scores = jnp.where(good[None], scores, -jnp.inf)
  numbers = jnp.broadcast_to(start + numbers, scores.shape)
  scores = jnp.concatenate([best[0], scores], axis=1)
  numbers = jnp.concatenate([best[1], numbers], axis=1)
  scores, places = jax.lax.top_k(scores, best[0].shape[1])
  return scores, jnp.take_along_axis(numbers, places, axis=1)
