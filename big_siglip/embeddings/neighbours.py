"""Near-duplicates among embeddings: pairs above a cosine, and their groups.

Blocks of rows are compared with blocks of rows on one device: the matrix of all
cosines exists at no time. Memory holds the embeddings, and 16 bytes a pair.

Shape letters: N rows, E width of an embedding, B rows of a block, P pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from big_siglip import progress
from big_siglip.data.embedding_folder import Reader
from big_siglip.errors import UserError

BLOCK = 4096  # Of 16.8 million cosines, 67 MB.
MOST = 20_000_000  # Pairs.
# Cosines of equal images differ from 1 by as much, as rounding goes.
_ROUNDING = 1e-6


class Pairs(NamedTuple):
  """Pairs of rows that lie near each other, the nearest first.

  Attributes:
    first: P int64, the row that comes first.
    second: P int64.
    cosine: P float32, at most 1.
    nearest: N float32, each row's cosine with the nearest other one; NaN for
      rows that are compared with none.
  """

  first: np.ndarray
  second: np.ndarray
  cosine: np.ndarray
  nearest: np.ndarray


class Group(NamedTuple):
  """Rows that near pairs join, one to the next.

  Attributes:
    rows: their numbers, in order.
    pairs: the numbers of their pairs, the nearest first.
  """

  rows: np.ndarray
  pairs: np.ndarray


def read_rows(reader: Reader) -> np.ndarray:
  """Returns all embeddings of a folder, NE float32."""
  rows = np.empty((reader.num_rows, reader.description.width), np.float32)
  start = 0
  with progress.Progress(len(rows), "rows read") as show:
    for block in reader.blocks(BLOCK):
      rows[start : start + len(block)] = block
      start += len(block)
      show.add(len(block))
  return rows


def normalize(rows: np.ndarray) -> int:
  """Brings rows to length 1, in place; returns how many are no vectors.

  Float16 has rounded lengths, too. What is not finite, or 0, becomes 0, and so
  lies near nothing.

  Args:
    rows: NE float32.
  """
  bad = 0
  for start in range(0, len(rows), BLOCK):
    block = rows[start : start + BLOCK]
    length = np.linalg.norm(block, axis=1, keepdims=True)
    good = np.isfinite(length) & (length > 0)
    block[:] = np.where(good, block / np.where(good, length, 1), 0)
    bad += int((~good).sum())
  return bad


def find_pairs(
  rows: np.ndarray, threshold: float, block: int = BLOCK, most: int = MOST
) -> Pairs:
  """Returns all pairs whose cosine is the threshold or above.

  Args:
    rows: NE float32, of length 1 or 0; see `normalize`.
    threshold: above 0, at most 1.
    block: B.
    most: pairs that memory is to hold.

  Raises:
    UserError: there are more pairs than that.
  """
  block = min(block, len(rows))
  starts = range(0, len(rows), block)
  there = rows.any(axis=1)
  nearest = np.full(len(rows), -np.inf, np.float32)
  least = jnp.float32(threshold - _ROUNDING)
  parts, count = [], 0
  with progress.Progress(len(starts) * (len(starts) + 1) // 2, "blocks") as bar:
    for a in starts:
      own = _padded(rows, a, block)
      for b in range(a, len(rows), block):
        other = own if b == a else _padded(rows, b, block)
        cosine, near, found, best_a, best_b = _compare(own, other, least, a - b)
        for start, best in ((a, best_a), (b, best_b)):
          part = nearest[start : start + block]
          np.maximum(part, np.asarray(best)[: len(part)], out=part)
        count += int(found)
        if count > most:
          raise UserError(
            f"more than {most:,} pairs lie at --threshold={threshold:g} or "
            "above; raise it"
          )
        if found:
          i, j = np.nonzero(np.asarray(near))
          parts.append((a + i, b + j, np.asarray(cosine)[i, j]))
        bar.add(1)
  empty = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
  first, second, cosine = map(np.concatenate, zip(empty, *parts, strict=True))
  order = np.lexsort((second, first, -cosine))
  return Pairs(
    first[order],
    second[order],
    np.minimum(cosine[order], 1),
    np.where(there & np.isfinite(nearest), nearest, np.nan),
  )


@jax.jit
def _compare(own, other, threshold, offset):
  """Compares two blocks BE, the second of which begins `-offset` rows later.

  Returns:
    Cosines BB; which of them are near and not seen before, BB bool; how many
    these are; each row's nearest in the other block, B and B.
  """
  # A GPU or TPU would round to fewer bits otherwise, and mix up neighbours.
  cosine = jnp.matmul(own, other.T, precision=jax.lax.Precision.HIGHEST)
  number = jnp.arange(len(own))
  after = (number[None] - offset) > number[:, None]  # Each pair once.
  itself = (number[None] - offset) == number[:, None]
  near = (cosine >= threshold) & after
  others = jnp.where(itself, -jnp.inf, cosine)
  return cosine, near, near.sum(), others.max(axis=1), others.max(axis=0)


def _padded(rows: np.ndarray, start: int, block: int) -> jax.Array:
  """Returns a block BE; rows of 0 behind the last one lie near nothing."""
  part = rows[start : start + block]
  return jnp.asarray(np.pad(part, [(0, block - len(part)), (0, 0)]))


def find_groups(pairs: Pairs) -> list[Group]:
  """Returns what pairs join, the largest group first.

  A is near B and B near C: then A and C are of one group, however far apart
  they are.
  """
  count = len(pairs.nearest)
  joined = np.ones(len(pairs.first), bool)
  graph = coo_array((joined, (pairs.first, pairs.second)), (count, count))
  _, label = connected_components(graph, directed=False)
  of_pair = label[pairs.first]
  rows = _by_label(label, np.unique(of_pair))
  numbers = _by_label(of_pair, np.unique(of_pair))
  found = [Group(*both) for both in zip(rows, numbers, strict=True)]
  return sorted(found, key=lambda group: (-len(group.rows), group.rows[0]))


def _by_label(labels: np.ndarray, wanted: np.ndarray) -> Sequence[np.ndarray]:
  """Returns the places of each wanted label, ascending."""
  order = np.argsort(labels, kind="stable")
  ordered = labels[order]
  starts = np.searchsorted(ordered, wanted, "left")
  ends = np.searchsorted(ordered, wanted, "right")
  return [order[a:b] for a, b in zip(starts, ends, strict=True)]


def numbers_of(groups: Sequence[Group], count: int) -> np.ndarray:
  """Returns each pair's group, P int64, from 1 on in the order of `groups`."""
  found = np.zeros(count, np.int64)
  for number, group in enumerate(groups, 1):
    found[group.pairs] = number
  return found
