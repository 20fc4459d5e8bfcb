"""Masked prediction: what a teacher makes of patches that are not shown.

TIPS (arXiv:2410.16512, section 3.3) after iBOT (arXiv:2111.07832), as SigLIP 2
has it (arXiv:2502.14786, section 2.3): half of the embedded patches of the view
that the teacher sees whole are replaced by a learned vector in the student.

Shape letters: b examples, L patches, M of them hidden, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Places(NamedTuple):
  """Which patches are hidden.

  Attributes:
    chosen: bM int32, in an order that is drawn too.
    patches: bL bool, true for these.
  """

  chosen: jax.Array
  patches: jax.Array

  def of(self, tokens: jax.Array) -> jax.Array:
    """Returns the tokens there; bLD -> bMD."""
    return jnp.take_along_axis(tokens, self.chosen[..., None], axis=1)


def draw_places(keys: jax.Array, patches: int, share: float) -> Places:
  """Returns as many patches of each example, all sets of them as likely.

  Args:
    keys: [b], one of each example.
    patches: L.
    share: of them that is hidden.
  """
  order = jax.vmap(lambda key: jax.random.permutation(key, patches))(keys)
  count = hidden_count(patches, share)
  return Places(order[:, :count], jnp.argsort(order, axis=1) < count)


def hidden_count(patches: int, share: float) -> int:
  """Returns M, a share of L rounded to a whole number."""
  return round(share * patches)
