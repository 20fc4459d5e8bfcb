"""Recall at k in blocks: no matrix of all similarities exists at any time.

Shape letters: Q queries, C candidates, D embedding width, q and c rows of a
block of them, K blocks of candidates.
"""

import jax
import jax.numpy as jnp
import numpy as np

from big_siglip.errors import UserError

# Similarities of unit vectors closer than this are equal: a float32 dot product
# is exact to about 1e-7, and which way it errs depends on batch and device.
TIE = 1e-6
# Of a block. On a CPU its similarities should stay in the caches; a million
# queries and candidates take a quarter of a million such blocks.
QUERIES, CANDIDATES = 4096, 1024
_NOBODY = -1  # The id of padding; ids are not negative.


def recall(
  queries: np.ndarray,
  candidates: np.ndarray,
  query_ids: np.ndarray,
  candidate_ids: np.ndarray,
  ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, float]:
  """Returns the share of queries with a match among their k nearest candidates.

  A candidate matches a query of the same id. Ties count against the query: a
  match must be more similar, by more than `TIE`, than all but k - 1 of the
  candidates that do not match. So a model that embeds everything alike finds
  nothing. A candidate that is not finite is not ranked, and a query that is not
  finds nothing.

  Args:
    queries: QD float32 unit vectors.
    candidates: CD float32 unit vectors; they are copied to the device.
    query_ids: Q, not negative.
    candidate_ids: C; several candidates may have the same.
    ks: cut-offs; one above C counts every candidate.

  Returns:
    {"recall@1": ...}, each in [0, 1].

  Raises:
    UserError: there is no query or no candidate.
  """
  if not len(queries) or not len(candidates):
    raise UserError(
      f"retrieval: {len(queries)} queries and {len(candidates)} candidates: "
      "there must be one of each at least"
    )
  ranks = rank_of_match(queries, candidates, query_ids, candidate_ids)
  return {f"recall@{k}": float(np.mean(ranks < k)) for k in ks}


def rank_of_match(
  queries: np.ndarray,
  candidates: np.ndarray,
  query_ids: np.ndarray,
  candidate_ids: np.ndarray,
) -> np.ndarray:
  """Returns how many wrong candidates come before each query's best match.

  Runs on one device of each process, in float32.

  Args:
    queries: QD, see `recall`; the rest too.
    candidates: CD.
    query_ids: Q.
    candidate_ids: C.

  Returns:
    Q floats; infinite without a match, or without a finite one.
  """
  finite = np.isfinite(candidates).all(axis=1)
  if not finite.all():
    candidates, candidate_ids = candidates[finite], candidate_ids[finite]
  if not len(candidates):
    return np.full(len(queries), np.inf)
  best = _best_match(queries, candidates, query_ids, candidate_ids)
  rows = min(CANDIDATES, len(candidates))
  blocks = (
    _in_blocks(candidates, rows, 0.0),
    _in_blocks(candidate_ids, rows, _NOBODY),
  )
  size = min(QUERIES, len(queries))
  ranks = np.empty(len(queries))
  # One behind, so that the device does not wait for the host.
  running: list[tuple[slice, jax.Array]] = []
  for start in range(0, len(queries), size):
    part = slice(start, start + size)
    padded = (
      _padded(queries[part], size, 0.0),
      _padded(best[part] - np.float32(TIE), size, np.inf),
      _padded(query_ids[part], size, _NOBODY),
    )
    running.append((part, count_before(*padded, *blocks)))
    while len(running) > 1 or (running and part.stop >= len(queries)):
      done, counts = running.pop(0)
      ranks[done] = np.asarray(counts)[: len(ranks[done])]
  return np.where(np.isfinite(best), ranks, np.inf)


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


def _best_match(queries, candidates, query_ids, candidate_ids) -> np.ndarray:
  """Returns Q float32 similarities of the best match; -inf without one."""
  order = np.argsort(candidate_ids, kind="stable")
  sorted_ids = candidate_ids[order]
  first = np.searchsorted(sorted_ids, query_ids, "left")
  count = np.searchsorted(sorted_ids, query_ids, "right") - first
  best = np.full(len(queries), -np.inf, np.float32)
  for number in range(count.max(initial=0)):  # Each query's first match, ...
    has = np.flatnonzero(count > number)
    for start in range(0, len(has), QUERIES):
      rows = has[start : start + QUERIES]
      matches = candidates[order[first[rows] + number]]
      similarity = np.einsum("qd,qd->q", queries[rows], matches)
      best[rows] = np.maximum(best[rows], similarity)
  return best


def _padded(rows: np.ndarray, size: int, value: float) -> jax.Array:
  missing = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
  dtype = np.int32 if rows.dtype.kind in "iu" else np.float32
  return jnp.asarray(np.pad(rows.astype(dtype), missing, constant_values=value))


def _in_blocks(rows: np.ndarray, size: int, value: float) -> jax.Array:
  """Returns the rows, padded, as blocks of `size`."""
  total = -(-len(rows) // size) * size
  return _padded(rows, total, value).reshape(-1, size, *rows.shape[1:])
