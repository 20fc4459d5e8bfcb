"""The sigmoid loss, dense: the reference for every other form of it.

Shape letters: n examples, D embedding width.
"""

import jax
import jax.numpy as jnp


def sigmoid_loss(
  image: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array,
) -> jax.Array:
  """Returns the sigmoid loss of SigLIP: every pair is a question of its own.

  arXiv:2303.15343, section 3.2 and Algorithm 1:

    -1/n sum_i sum_j log sigmoid(z_ij (t <x_i, y_j> + b))

  with z_ij = 1 for the matching pairs and -1 for all others.

  Args:
    image: [n, D] float32, normalised.
    text: [n, D] float32, normalised; row i belongs to image i.
    logit_scale: () the log of the multiplier t.
    logit_bias: () the bias b.

  Returns:
    () float32, the mean over images of the sum over texts.
  """
  n = len(image)
  logits = jnp.exp(logit_scale) * dot_products(image, text) + logit_bias
  signs = 2 * jnp.eye(n) - 1
  # The sign stays inside: softplus(x) - x for the positives is equal on paper,
  # but its gradient cancels for well aligned pairs.
  return -jax.nn.log_sigmoid(signs * logits).sum() / n


def dot_products(image: jax.Array, text: jax.Array) -> jax.Array:
  """Returns all dot products in float32; (iD, jD) -> ij.

  The default precision of accelerators rounds float32 factors to bfloat16,
  which the sigmoid's logits, scaled by up to 100, do not bear. The products are
  a small part of a step, so the highest precision costs little.
  """
  return jnp.einsum(
    "iD,jD->ij",
    image,
    text,
    precision="highest",
    preferred_element_type=jnp.float32,
  )
