"""The text tower: tokens -> transformer -> tokens, and one vector.

Shape letters: B batch, L tokens, D width, V vocabulary, E embedding.
"""

from typing import Any

from flax import linen as nn
import jax

from big_siglip.models.compute import Compute
from big_siglip.models.embedding import token_embedding
from big_siglip.models.pooling import encode
from big_siglip.schema import sizes


class TextTower(nn.Module):
  """Text transformer of SigLIP (arXiv:2303.15343); BL int32 -> BE, BLD.

  Bidirectional, and without a mask of its own: SigLIP's texts see padding too.

  Attributes:
    config: `config.model.text`: size, vocab_size, length, pooling ("last": the
      last position, as SigLIP; "map": attention pooling; "mean"; "cls": a
      token before the first; "none": the tokens alone) and head (a projection
      with bias).
    embed_dim: E, of the head.
    compute: how.
  """

  config: Any
  embed_dim: int
  compute: Compute

  @nn.compact
  def __call__(
    self, text: jax.Array, mask: jax.Array | None = None
  ) -> tuple[jax.Array | None, jax.Array]:
    """Embeds texts.

    Args:
      text: BL token ids, 0 <= id < V.
      mask: BL bool, true for real tokens; None: all are.

    Returns:
      The embeddings, BE, not normalised to length (None where pooling is
      "none"), and the tokens after the final norm, BLD.
    """
    size = sizes.resolve_text(self.config)
    table = token_embedding(
      self.config.vocab_size, size.width, self.compute.dtype
    )
    x = table(text)  # BLD
    pooled, tokens = encode(
      self, x, mask, self.config.pooling, size, self.compute
    )
    if pooled is not None and self.config.head:
      pooled = nn.Dense(self.embed_dim, dtype=self.compute.dtype, name="head")(
        pooled
      )
    return pooled, tokens
