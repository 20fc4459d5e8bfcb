"""What a batch's logits look like, for the metrics; no gradient flows here."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LogitStatistics(NamedTuple):
  """Statistics of the n x n logits, without gradient.

  Attributes:
    positive: () float32, mean over the matching pairs.
    negative: () float32, mean over all other pairs; 0 where n = 1.
    hardest_negative: [n] float32, the largest logit between each image and
      another image's text; 0 where n = 1.
  """

  positive: jax.Array
  negative: jax.Array
  hardest_negative: jax.Array


def from_logits(logits: jax.Array) -> LogitStatistics:
  """Returns the statistics of a whole matrix, [n, n]."""
  n = len(logits)
  logits = jax.lax.stop_gradient(logits)
  matching = jnp.eye(n, dtype=bool)
  return from_sums(
    n,
    jnp.diagonal(logits).sum(),
    jnp.where(matching, 0.0, logits).sum(),
    jnp.where(matching, -jnp.inf, logits).max(axis=1),
  )


def from_sums(
  n: int, positives: jax.Array, negatives: jax.Array, hardest: jax.Array
) -> LogitStatistics:
  """Returns the statistics from sums over all pairs and maxima over texts."""
  # A float: from 2^16 examples on no int32 holds it.
  pairs = max(float(n) * (n - 1), 1.0)
  # A batch of one has no negatives, and metrics hold no infinities.
  hardest = hardest if n > 1 else jnp.zeros_like(hardest)
  return LogitStatistics(positives / n, negatives / pairs, hardest)
