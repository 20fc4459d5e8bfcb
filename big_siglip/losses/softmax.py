"""CLIP's softmax loss, dense, to compare the sigmoid loss with.

Shape letters: n examples, D embedding width.
"""

import jax
import jax.numpy as jnp

from big_siglip.losses.duplicates import check_ids, classify_pairs
from big_siglip.losses.ring_scan import product
from big_siglip.losses.statistics import from_logits, LogitStatistics


def softmax_loss(
  image: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array,
  *,
  ids: jax.Array | None = None,
  duplicates: str = "ignore",
  statistics: bool = False,
) -> jax.Array | tuple[jax.Array, LogitStatistics]:
  """Returns the InfoNCE loss of CLIP, arXiv:2103.00020, figure 3.

  Duplicates are left out of the denominators, or share the numerator: the mean
  of -log p over all positives of a row, as in arXiv:2004.11362, equation 2.

  Args:
    image: [n, D] float32, normalised.
    text: [n, D] float32, normalised; row i belongs to image i.
    logit_scale: () the log of the inverse temperature.
    logit_bias: () a softmax does not see a common shift: without effect but on
      the statistics.
    ids: [n] integers, equal for examples that are the same; or [n, K, W], see
      `big_siglip.losses.duplicates`. None: no pair is a duplicate.
    duplicates: "ignore" or "positive": what those pairs are.
    statistics: return (loss, `LogitStatistics`).

  Returns:
    () float32, the mean of both directions' cross entropies.

  Raises:
    UserError: ids of another shape, or duplicates is another word.
  """
  ids = check_ids(ids, len(image), duplicates)
  logits = jnp.exp(logit_scale) * product("iD,jD->ij", image, text)
  pairs = classify_pairs(jnp.eye(len(image), dtype=bool), ids, ids, duplicates)
  rivals = pairs.masked(logits, -jnp.inf)
  positives = jnp.where(pairs.positive, logits, 0.0)
  loss = 0.0
  for axis in (1, 0):  # From images to texts, and back.
    positive = positives.sum(axis) / pairs.positive.sum(axis)
    loss += (jax.nn.logsumexp(rivals, axis) - positive).mean() / 2
  if not statistics:
    return loss
  return loss, from_logits(logits + logit_bias, ids, duplicates)
