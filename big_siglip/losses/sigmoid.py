"""The sigmoid loss, dense: the reference for every other form of it.

Shape letters: n examples, D embedding width.
"""

import jax
import jax.numpy as jnp

from big_siglip.losses.duplicates import check_ids, classify_pairs
from big_siglip.losses.ring_scan import product
from big_siglip.losses.statistics import from_logits, LogitStatistics


def sigmoid_loss(
  image: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array,
  *,
  ids: jax.Array | None = None,
  duplicates: str = "ignore",
  statistics: bool = False,
) -> jax.Array | tuple[jax.Array, LogitStatistics]:
  """Returns the sigmoid loss of SigLIP: every pair is a question of its own.

  arXiv:2303.15343, section 3.2 and Algorithm 1:

    -1/n sum_i sum_j log sigmoid(z_ij (t <x_i, y_j> + b))

  with z_ij = 1 for the matching pairs and -1 for all others. Duplicates, which
  the paper does not treat, are left out of the sums or have z_ij = 1.

  Args:
    image: [n, D] float32, normalised.
    text: [n, D] float32, normalised; row i belongs to image i.
    logit_scale: () the log of the multiplier t.
    logit_bias: () the bias b.
    ids: [n] integers, equal for examples that are the same; or [n, K, W], see
      `big_siglip.losses.duplicates`. None: no pair is a duplicate.
    duplicates: "ignore" or "positive": what those pairs are.
    statistics: return (loss, `LogitStatistics`).

  Returns:
    () float32, the mean over images of the sum over texts.

  Raises:
    UserError: ids of another shape, or duplicates is another word.
  """
  n = len(image)
  ids = check_ids(ids, n, duplicates)
  logits = jnp.exp(logit_scale) * product("iD,jD->ij", image, text) + logit_bias
  pairs = classify_pairs(jnp.eye(n, dtype=bool), ids, ids, duplicates)
  signs = jnp.where(pairs.positive, 1.0, -1.0)
  # The sign stays inside: softplus(x) - x for the positives is equal on paper,
  # but its gradient cancels for well aligned pairs.
  loss = -pairs.masked(jax.nn.log_sigmoid(signs * logits)).sum() / n
  if not statistics:
    return loss
  return loss, from_logits(logits, ids, duplicates)
