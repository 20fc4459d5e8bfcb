"""The image tower: patches -> transformer -> tokens, and one vector.

Shape letters: B batch, H and W pixels, L patches, D width, E embedding; N
places of a sequence of patches, p pixels along a patch's side.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from big_siglip.models.compute import Compute
from big_siglip.models.dense import add_bias
from big_siglip.models.pooling import encode
from big_siglip.models.positions import Grid, Grids, real
from big_siglip.models.towers import Hidden, Image
from big_siglip.schema import sizes


class ImageTower(nn.Module):
  """Vision transformer of SigLIP (arXiv:2303.15343) and CLIP.

  BHW3 -> BE, BLD, BD. It sees images as squares of pixels, or as sequences of
  patches that keep their shape: NaFlex, arXiv:2502.14786, section 2.4.2.
  Parameters are the same.

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
    image: Image,
    mask: jax.Array | None = None,
    hidden: Hidden | None = None,
  ) -> tuple[jax.Array | None, jax.Array, jax.Array | None]:
    """Embeds images.

    Args:
      image: BHW3, uint8, or float of which mean and std are taken off. Where
        its size is not that of the config, positions are resampled. Or
        sequences: "patches" of the same, BN(p p 3), row by row, each by row,
        column and color; and "grid", B2 int32, rows and columns. What stands
        behind a grid changes nothing; its tokens mean nothing.
      mask: BL bool, true for real patches; None: all are, or of sequences those
        of the grid.
      hidden: patches that are not shown; None: none are.

    Returns:
      The embeddings, BE, not normalised to length (None where pooling is
      "none"), the patches after the final norm, BLD, and what is pooled of
      them, BD, before any head (None where pooling is "none").
    """
    size = sizes.resolve_image(self.config)
    if isinstance(image, Mapping):
      x, grid = self._embed_patches(image, size)
      mask = real(grid.grid, grid.length) if mask is None else mask
    else:
      x, grid = self._embed_pixels(image, size)
    compute = self.compute
    if hidden is not None:  # Beside a pass of whole images.
      compute = dataclasses.replace(compute, apart=True)
      token = hidden.token.astype(x.dtype).reshape(1, 1, -1)
      x = jnp.where(hidden.patches[..., None], token, x)
    pooled, tokens = encode(
      self, x, mask, self.config.pooling, size, compute, self.blocks, grid
    )
    embedding = pooled
    if pooled is not None and self.config.head:
      embedding = nn.Dense(
        self.embed_dim, use_bias=False, dtype=self.compute.dtype, name="head"
      )(pooled)
    return embedding, tokens, pooled

  @nn.nowrap
  def _embed_pixels(
    self, image: jax.Array, size: sizes.TowerSize
  ) -> tuple[jax.Array, Grid]:
    """Returns BLD of BHW3; call it in `__call__`."""
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
    grid = Grid(rows, columns, sizes.grid_side(self.config))
    return x.reshape(x.shape[0], -1, size.width), grid

  @nn.nowrap
  def _embed_patches(
    self, image: Mapping[str, jax.Array], size: sizes.TowerSize
  ) -> tuple[jax.Array, Grids]:
    """Returns BND of sequences; call it in `__call__`."""
    patches = image["patches"]
    x = patches.reshape(*patches.shape[:2], -1, 3)
    if x.dtype == jnp.uint8:
      x = normalize(x, self.config.mean, self.config.std)
    embed = PatchEmbedding(size, self.compute.dtype, name="patch_embedding")
    side = sizes.grid_side(self.config)
    grids = Grids(image["grid"], patches.shape[1], side)
    return embed(x.reshape(patches.shape)), grids


class PatchEmbedding(nn.Module):
  """A linear map with the parameters of a convolution; BN(p p 3) -> BND.

  Attributes:
    size: of the tower.
    dtype: of the computation.
  """

  size: sizes.TowerSize
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns what `nn.Conv` makes of the same patches."""
    patch, width = self.size.patch_size, self.size.width
    shape = patch, patch, 3, width
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (width,))
    x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel, bias))
    return add_bias(x @ kernel.reshape(-1, width), bias)


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
