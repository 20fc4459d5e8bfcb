"""The image tower: patches -> transformer -> tokens, and one vector.

Shape letters: B batch, H and W pixels, L patches, D width, E embedding.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from big_siglip.models.compute import Compute
from big_siglip.models.pooling import encode
from big_siglip.models.positions import Grid
from big_siglip.models.towers import Hidden
from big_siglip.schema import sizes


class ImageTower(nn.Module):
  """Vision transformer of SigLIP (arXiv:2303.15343) and CLIP.

  BHW3 -> BE, BLD, BD.

  Attributes:
    config: `config.model.image`: size, pooling ("map": attention pooling, as
      SigLIP; "cls": a token before the first patch, as CLIP; "gap": mean;
      "none": the tokens alone), head (a projection without bias), and mean and
      std of red, green and blue in [0, 1], which uint8 images are brought to.
    embed_dim: E, of the head.
    compute: how.
    blocks: how many are applied, for the patches after them alone, without
      the final norm; None: all.
  """

  config: Any
  embed_dim: int
  compute: Compute
  blocks: int | None = None

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    mask: jax.Array | None = None,
    hidden: Hidden | None = None,
  ) -> tuple[jax.Array | None, jax.Array, jax.Array | None]:
    """Embeds images.

    Args:
      image: BHW3, uint8, or float of which mean and std are taken off. Where
        its size is not that of the config, positions are resampled.
      mask: BL bool, true for real patches; None: all are.
      hidden: patches that are not shown; None: none are.

    Returns:
      The embeddings, BE, not normalised to length (None where pooling is
      "none"), the patches after the final norm, BLD, and what is pooled of
      them, BD, before any head (None where pooling is "none").
    """
    size = sizes.resolve_image(self.config)
    if image.dtype == jnp.uint8:
      image = normalize(image, self.config.mean, self.config.std)
    x = nn.Conv(
      size.width,
      (size.patch_size, size.patch_size),
      strides=(size.patch_size, size.patch_size),
      padding="VALID",
      dtype=self.compute.dtype,
      kernel_init=nn.initializers.lecun_normal(),
      name="patch_embedding",
    )(image)
    _, rows, columns, _ = x.shape
    grid = Grid(rows, columns, self.config.image_size // size.patch_size)
    x = x.reshape(x.shape[0], -1, size.width)  # BLD
    if hidden is not None:
      token = hidden.token.astype(x.dtype).reshape(1, 1, -1)
      x = jnp.where(hidden.patches[..., None], token, x)
    pooled, tokens = encode(
      self, x, mask, self.config.pooling, size, self.compute, self.blocks, grid
    )
    embedding = pooled
    if pooled is not None and self.config.head:
      embedding = nn.Dense(
        self.embed_dim, use_bias=False, dtype=self.compute.dtype, name="head"
      )(pooled)
    return embedding, tokens, pooled


def normalize(image: jax.Array, mean: Any, std: Any) -> jax.Array:
  """Returns BHW3 float32 of uint8: less a mean, and divided by a deviation.

  Args:
    image: BHW3 uint8.
    mean: of red, green and blue, in [0, 1].
    std: the same.
  """
  image = image.astype(jnp.float32)
  if {*mean, *std} == {0.5}:  # Which all published weights have.
    return image / 127.5 - 1
  mean, std = (jnp.float32(each).reshape(1, 1, 1, 3) for each in (mean, std))
  return (image / 255 - mean) / std
