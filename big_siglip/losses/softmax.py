"""CLIP's softmax loss, dense, to compare the sigmoid loss with.

Shape letters: n examples, D embedding width.
"""

import jax
import jax.numpy as jnp

from big_siglip.losses.sigmoid import dot_products


def softmax_loss(
  image: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array,
) -> jax.Array:
  """Returns the InfoNCE loss of CLIP, arXiv:2103.00020, figure 3.

  Args:
    image: [n, D] float32, normalised.
    text: [n, D] float32, normalised; row i belongs to image i.
    logit_scale: () the log of the inverse temperature.
    logit_bias: () without effect: a softmax does not see a common shift.

  Returns:
    () float32, the mean of both directions' cross entropies.
  """
  del logit_bias
  logits = jnp.exp(logit_scale) * dot_products(image, text)
  matching = jnp.diagonal(logits)
  image_to_text = jax.nn.logsumexp(logits, axis=1) - matching
  text_to_image = jax.nn.logsumexp(logits, axis=0) - matching
  return (image_to_text.mean() + text_to_image.mean()) / 2
