"""The image tower: patches -> transformer -> one vector.

Shape letters: B batch, H and W pixels, L patches, D width, E embedding.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from big_siglip.models.transformer import (
  add_class_token,
  add_position_embedding,
  AttentionPool,
  Encoder,
)
from big_siglip.schema import sizes


class ImageTower(nn.Module):
  """Vision transformer of SigLIP (arXiv:2303.15343) and CLIP; BHW3 -> BE.

  Attributes:
    config: `config.model.image`: size, pooling ("map": attention pooling, as
      SigLIP; "cls": a token before the first patch, as CLIP; "gap": mean) and
      head (a projection without bias).
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
  def __call__(self, image: jax.Array) -> jax.Array:
    """Embeds images: uint8, or float from -1 to 1. Not normalised to length."""
    size = sizes.resolve_image(self.config)
    if image.dtype == jnp.uint8:
      image = image.astype(jnp.float32) / 127.5 - 1
    x = nn.Conv(
      size.width,
      (size.patch_size, size.patch_size),
      strides=(size.patch_size, size.patch_size),
      padding="VALID",
      dtype=self.dtype,
      kernel_init=nn.initializers.lecun_normal(),
      name="patch_embedding",
    )(image)
    x = x.reshape(x.shape[0], -1, size.width)  # BLD
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
    else:
      x = x[:, 0] if pooling == "cls" else x.mean(axis=1)
    if self.config.head:
      x = nn.Dense(
        self.embed_dim, use_bias=False, dtype=self.dtype, name="head"
      )(x)
    return x
