"""CLIP's softmax loss, dense, to compare the sigmoid loss with.

Shape letters: n examples, D embedding width.
"""

import jax
import jax.numpy as jnp

from big_siglip.losses.statistics import from_logits, LogitStatistics
from big_siglip.losses.travel import product


def softmax_loss(
  image: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array,
  *,
  statistics: bool = False,
) -> jax.Array | tuple[jax.Array, LogitStatistics]:
  """Returns the InfoNCE loss of CLIP, arXiv:2103.00020, figure 3.

  Args:
    image: [n, D] float32, normalised.
    text: [n, D] float32, normalised; row i belongs to image i.
    logit_scale: () the log of the inverse temperature.
    logit_bias: () a softmax does not see a common shift: without effect but on
      the statistics.
    statistics: return (loss, `LogitStatistics`).

  Returns:
    () float32, the mean of both directions' cross entropies.
  """
  logits = jnp.exp(logit_scale) * product("iD,jD->ij", image, text)
  matching = jnp.diagonal(logits)
  image_to_text = jax.nn.logsumexp(logits, axis=1) - matching
  text_to_image = jax.nn.logsumexp(logits, axis=0) - matching
  loss = (image_to_text.mean() + text_to_image.mean()) / 2
  return (loss, from_logits(logits + logit_bias)) if statistics else loss
