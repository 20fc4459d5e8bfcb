"""The text tower: tokens -> transformer -> one vector.

Shape letters: B batch, L tokens, D width, V vocabulary, E embedding.
"""

from typing import Any

from flax import linen as nn
import jax
from jax.sharding import NamedSharding

from big_siglip.models.transformer import (
  add_class_token,
  add_position_embedding,
  AttentionPool,
  Encoder,
)
from big_siglip.schema import sizes


class TextTower(nn.Module):
  """Text transformer of SigLIP (arXiv:2303.15343); BL int32 -> BE.

  Bidirectional: no causal and no padding mask.

  Attributes:
    config: `config.model.text`: size, vocab_size, length, pooling ("last": the
      last position, as SigLIP; "map": attention pooling; "mean"; "cls": a
      token before the first) and head (a projection with bias).
    embed_dim: E, of the head.
    dtype: of the computation; parameters are float32.
    backend: of the attention; name in `fields.ATTENTIONS`.
    remat: name of `remat.REMAT_POLICIES`.
    scan: stack the blocks' parameters and loop over them.
    sharding: of the encoder's activations; None: as the compiler likes.
    slice_tokens: that go through a block at once; see `transformer.Encoder`.
  """

  config: Any
  embed_dim: int
  dtype: str
  backend: str
  remat: str
  scan: bool
  sharding: NamedSharding | None = None
  slice_tokens: int | None = None

  @nn.compact
  def __call__(self, text: jax.Array) -> jax.Array:
    """Embeds token ids, 0 <= id < V. Not normalised to length."""
    size = sizes.resolve_text(self.config)
    x = nn.Embed(
      self.config.vocab_size,
      size.width,
      dtype=self.dtype,
      embedding_init=nn.initializers.variance_scaling(
        1.0, "fan_in", "normal", out_axis=0
      ),
      name="token_embedding",
    )(text)  # BLD
    pooling = self.config.pooling
    if pooling == "cls":
      x = add_class_token(self, x)
    x = add_position_embedding(self, x)
    x = Encoder(
      size.depth,
      size.num_heads,
      size.mlp_dim,
      self.dtype,
      self.backend,
      self.remat,
      self.scan,
      self.sharding,
      self.slice_tokens,
      name="encoder",
    )(x)
    if pooling == "map":
      x = AttentionPool(
        size.num_heads,
        size.mlp_dim,
        self.dtype,
        self.backend,
        self.sharding,
        name="pool",
      )(x)
    elif pooling == "mean":
      x = x.mean(axis=1)
    else:
      x = x[:, 0] if pooling == "cls" else x[:, -1]
    if self.config.head:
      x = nn.Dense(self.embed_dim, dtype=self.dtype, name="head")(x)
    return x
