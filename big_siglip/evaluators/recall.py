"""Recall at k in blocks: no matrix of all similarities exists at any time.

Shape letters: Q queries, C candidates, D embedding width, q and c rows of a
block of them, K blocks of candidates.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from big_siglip import progress
from big_siglip.errors import UserError

# Similarities of unit vectors closer than this are equal: a float32 dot product
# is exact to about 1e-7, and which way it errs depends on batch and device.
TIE = 1e-6
# Of a block. On a CPU its similarities should stay in the caches; a million
# queries and candidates take a quarter of a million such blocks.
QUERIES, CANDIDATES = 4096, 1024
_NOBODY = -1  # The id of padding; ids are not negative.


def rank_of_match(
  queries: np.ndarray,
  candidates: np.ndarray,
  query_ids: np.ndarray,
  candidate_ids: np.ndarray,
) -> np.ndarray:
  """Returns how many wrong candidates come before each query's best match.

  A candidate matches a query of the same id. Ties count against the query: what
  does not match comes before a match unless that is more similar, by more than
  `TIE`. So a model that embeds everything alike finds nothing. A candidate that
  is not finite is not ranked, and a query that is not finds nothing.

  Runs on one device of each process, in float32.

  Args:
    queries: QD float32 unit vectors.
    candidates: CD float32 unit vectors; they are copied to the device.
    query_ids: Q, not negative.
    candidate_ids: C; several candidates may have the same.

  Returns:
    Q floats; infinite without a match, or without a finite one.

  Raises:
    UserError: there is no query or no candidate.
  """
  if not len(queries) or not len(candidates):
    raise UserError(
      f"retrieval: {len(queries)} queries and {len(candidates)} candidates: "
      "there must be one of each at least"
    )
  finite = np.isfinite(candidates).all(axis=1)
  if not finite.all():
    candidates, candidate_ids = candidates[finite], candidate_ids[finite]
  if not len(candidates):
    return np.full(len(queries), np.inf)
  best, _ = _best_match(queries, candidates, query_ids, candidate_ids)
  blocks = _blocks(candidates, candidate_ids)
  ranks = np.empty(len(queries))
  threshold = best - np.float32(TIE)
  for part, counts in _by_block(
    count_before, queries, query_ids, blocks, threshold
  ):
    ranks[part] = counts
  return np.where(np.isfinite(best), ranks, np.inf)


class First(NamedTuple):
  """What comes first for each query, in the order of `rank_of_match`.

  Attributes:
    candidate: Q, its place among the candidates; -1 for none.
    score: Q float32, its cosine; NaN for none.
    match_score: Q float32, that of the best match; NaN without one.
  """

  candidate: np.ndarray
  score: np.ndarray
  match_score: np.ndarray


def find_first(
  queries: np.ndarray,
  candidates: np.ndarray,
  query_ids: np.ndarray,
  candidate_ids: np.ndarray,
) -> First:
  """Returns the candidate that comes first; arguments as `rank_of_match`'s."""
  places = np.flatnonzero(np.isfinite(candidates).all(axis=1))
  candidates, candidate_ids = candidates[places], candidate_ids[places]
  match, where = _best_match(queries, candidates, query_ids, candidate_ids)
  wrong = np.full(len(queries), -np.inf, np.float32)
  wrong_where = np.zeros(len(queries), int)
  if len(places):
    blocks = _blocks(candidates, candidate_ids)
    for part, (score, number) in _by_block(
      nearest_wrong, queries, query_ids, blocks
    ):
      wrong[part], wrong_where[part] = score, number
  matches = match - np.float32(TIE) > wrong
  score = np.where(matches, match, wrong)
  found = np.isfinite(score)
  chosen = np.where(matches, where, wrong_where)
  return First(
    candidate=np.where(found, places[chosen] if len(places) else -1, -1),
    score=np.where(found, score, np.nan),
    match_score=np.where(np.isfinite(match), match, np.nan),
  )


def _by_block(compare, queries, query_ids, blocks, *values):
  """Yields (slice, what `compare` says of these queries), block by block."""
  size = min(QUERIES, len(queries))
  # One behind, so that the device does not wait for the host.
  running: list[tuple[slice, Any]] = []
  with progress.Progress(len(queries), "queries") as show:
    for start in range(0, len(queries), size):
      part = slice(start, start + size)
      own = [_padded(value[part], size, np.inf) for value in values]
      ids = _padded(query_ids[part], size, _NOBODY)
      vectors = _padded(queries[part], size, 0.0)
      running.append((part, compare(vectors, *own, ids, *blocks)))
      while len(running) > 1 or (running and part.stop >= len(queries)):
        done, found = running.pop(0)
        count = len(queries[done])
        yield done, jax.tree.map(lambda x, n=count: np.asarray(x)[:n], found)
        show.add(count)


@jax.jit
def count_before(
  queries: jax.Array,
  threshold: jax.Array,
  query_ids: jax.Array,
  candidates: jax.Array,
  candidate_ids: jax.Array,
) -> jax.Array:
  """Returns how many candidates of other ids are not below the threshold.

  Args:
    queries: qD.
    threshold: q.
    query_ids: q int32.
    candidates: KcD.
    candidate_ids: Kc int32; negative for padding.
  """

  def count(total, block):
    rows, ids = block
    similarity = jnp.einsum("qD,cD->qc", queries, rows, precision="highest")
    # Not ">=": the comparison must be true of a NaN as well.
    behind = similarity < threshold[:, None]
    wrong = (ids[None] != query_ids[:, None]) & (ids[None] >= 0)
    return total + (~behind & wrong).sum(axis=1, dtype=jnp.int32), None

  nothing = jnp.zeros(len(queries), jnp.int32)
  return jax.lax.scan(count, nothing, (candidates, candidate_ids))[0]


@jax.jit
def nearest_wrong(
  queries: jax.Array,
  query_ids: jax.Array,
  candidates: jax.Array,
  candidate_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns the largest similarity of other ids, and its candidate's number.

  Args:
    queries: qD.
    query_ids: q int32.
    candidates: KcD.
    candidate_ids: Kc int32; negative for padding.
  """

  def look(best, block):
    rows, ids, start = block
    similarity = jnp.einsum("qD,cD->qc", queries, rows, precision="highest")
    wrong = (ids[None] != query_ids[:, None]) & (ids[None] >= 0)
    similarity = jnp.where(wrong, similarity, -jnp.inf)
    number = similarity.argmax(axis=1)
    highest = jnp.take_along_axis(similarity, number[:, None], axis=1)[:, 0]
    better = highest > best[0]
    return (
      jnp.where(better, highest, best[0]),
      jnp.where(better, start + number, best[1]),
    ), None

  count = candidate_ids.shape[1]
  starts = jnp.arange(len(candidates), dtype=jnp.int32) * count
  nothing = (
    jnp.full(len(queries), -jnp.inf, jnp.float32),
    jnp.zeros(len(queries), jnp.int32),
  )
  return jax.lax.scan(look, nothing, (candidates, candidate_ids, starts))[0]


def _best_match(
  queries, candidates, query_ids, candidate_ids
) -> tuple[np.ndarray, np.ndarray]:
  """Returns similarities of the best matches, and their candidates' numbers.

  Q float32, -inf without one; Q.
  """
  order = np.argsort(candidate_ids, kind="stable")
  sorted_ids = candidate_ids[order]
  first = np.searchsorted(sorted_ids, query_ids, "left")
  count = np.searchsorted(sorted_ids, query_ids, "right") - first
  best = np.full(len(queries), -np.inf, np.float32)
  where = np.zeros(len(queries), int)
  for number in range(count.max(initial=0)):  # Each query's first match, ...
    has = np.flatnonzero(count > number)
    for start in range(0, len(has), QUERIES):
      rows = has[start : start + QUERIES]
      places = order[first[rows] + number]
      similarity = np.einsum("qd,qd->q", queries[rows], candidates[places])
      where[rows] = np.where(similarity > best[rows], places, where[rows])
      best[rows] = np.maximum(best[rows], similarity)
  return best, where


def _blocks(candidates, candidate_ids) -> tuple[jax.Array, jax.Array]:
  """Returns vectors and ids in blocks, KcD and Kc."""
  rows = min(CANDIDATES, len(candidates))
  return (
    _in_blocks(candidates, rows, 0.0),
    _in_blocks(candidate_ids, rows, _NOBODY),
  )


def _padded(rows: np.ndarray, size: int, value: float) -> jax.Array:
  missing = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
  dtype = np.int32 if rows.dtype.kind in "iu" else np.float32
  return jnp.asarray(np.pad(rows.astype(dtype), missing, constant_values=value))


def _in_blocks(rows: np.ndarray, size: int, value: float) -> jax.Array:
  """Returns the rows, padded, as blocks of `size`."""
  total = -(-len(rows) // size) * size
  return _padded(rows, total, value).reshape(-1, size, *rows.shape[1:])
