"""What a batch's logits look like, for the metrics; no gradient flows here."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from big_siglip.losses.duplicates import classify_pairs


class LogitStatistics(NamedTuple):
  """Statistics of the n x n logits, without gradient.

  Attributes:
    positive: () float32, mean over the matching pairs, and over duplicates
      where they count as positive.
    negative: () float32, mean over all other pairs but the duplicates; 0 where
      there are none.
    hardest_negative: [n] float32, the largest logit between each image and
      another image's text that is no duplicate; 0 where there is none.
    duplicates: () float32, how many of the n (n - 1) pairs of an image and
      another one's text are duplicates; None where no ids tell.
  """

  positive: jax.Array
  negative: jax.Array
  hardest_negative: jax.Array
  duplicates: jax.Array | None = None


def from_logits(
  logits: jax.Array, ids: jax.Array | None = None, duplicates: str = "ignore"
) -> LogitStatistics:
  """Returns the statistics of a whole matrix, [n, n]; ids are [n, K, W]."""
  n = len(logits)
  logits = jax.lax.stop_gradient(logits)
  pairs = classify_pairs(jnp.eye(n, dtype=bool), ids, ids, duplicates)
  return from_sums(
    n,
    jnp.where(pairs.positive, logits, 0.0).sum(),
    jnp.where(pairs.known, 0.0, logits).sum(),
    jnp.where(pairs.known, -jnp.inf, logits).max(axis=1),
    None if ids is None else count(pairs.duplicate),
    duplicates=duplicates,
  )


def from_sums(
  n: int,
  positives: jax.Array,
  negatives: jax.Array,
  hardest: jax.Array,
  num_duplicates: jax.Array | None = None,
  *,
  duplicates: str = "ignore",
  shift: jax.Array | float = 0.0,
) -> LogitStatistics:
  """Returns the statistics from sums over all pairs and maxima over texts.

  Args:
    n: examples of the whole batch.
    positives: () sum over positive pairs.
    negatives: () sum over negative pairs.
    hardest: n, the largest negative of each image; -inf where there is none.
    num_duplicates: () or None.
    duplicates: what they are.
    shift: () what was not yet added to the logits.
  """
  # Floats: from 2^16 examples on no int32 holds them.
  matching, others = float(n), float(n) * (n - 1)
  if num_duplicates is not None:
    others -= num_duplicates
    matching += num_duplicates if duplicates == "positive" else 0.0
  negative = negatives / jnp.maximum(others, 1.0) + shift
  hardest += shift
  if n < 2 or num_duplicates is not None:  # There may be none.
    # Metrics hold no infinities.
    negative = jnp.where(others >= 1, negative, 0.0)
    hardest = jnp.where(hardest == -jnp.inf, 0.0, hardest)
  return LogitStatistics(
    positives / matching + shift, negative, hardest, num_duplicates
  )


def count(pairs: jax.Array) -> jax.Array:
  """Returns the number of true ones of a tile, exact in it, as () float32."""
  return pairs.sum(dtype=jnp.int32).astype(jnp.float32)
