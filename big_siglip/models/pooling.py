"""From the tokens of a tower to one vector of each sequence.

Shape letters: B batch, L tokens, D width, E embedding.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from big_siglip.models.compute import Compute
from big_siglip.models.norm import layer_norm
from big_siglip.models.positions import Grid
from big_siglip.models.transformer import (
  add_position_embedding,
  Attention,
  Encoder,
  Mlp,
)
from big_siglip.schema.sizes import TowerSize


class AttentionPool(nn.Module):
  """MAP head: a learned probe looks at all tokens; BLD -> BD.

  "Scaling Vision Transformers", arXiv:2106.04560. Without a residual from the
  probe, as big_vision has it.

  Attributes:
    num_heads: H.
    mlp_dim: F.
    compute: how.
  """

  num_heads: int
  mlp_dim: int
  compute: Compute

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Pools the tokens that `mask`, BL bool, calls real; None: all."""
    batch, _, width = x.shape
    dtype = self.compute.dtype
    probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
    probe = jnp.broadcast_to(probe.astype(x.dtype), (batch, 1, width))
    attend = Attention(self.num_heads, self.compute, name="attention")
    x = attend(probe, x, mask)
    y = layer_norm(dtype, name="norm")(x)
    return (x + Mlp(self.mlp_dim, dtype, name="mlp")(y))[:, 0]


def pool(
  x: jax.Array,
  pooling: str,
  size: TowerSize,
  compute: Compute,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Returns one vector of each sequence, BLD -> BD; call it in a tower.

  Args:
    x: BLD, after the final norm.
    pooling: "map": attention pooling, a module "pool" of the tower; "cls": the
      first token; "last": the last real one; "mean" or "gap": the mean.
    size: of the tower.
    compute: how.
    mask: BL bool, true for real tokens, which stand before all others; None:
      all are.
  """
  if pooling == "map":
    map_head = AttentionPool(size.num_heads, size.mlp_dim, compute, name="pool")
    return map_head(x, mask)
  if pooling == "cls":
    return x[:, 0]
  if mask is None:
    return x[:, -1] if pooling == "last" else x.mean(axis=1)
  real = mask.sum(axis=1, keepdims=True)
  if pooling == "last":
    last = jnp.maximum(real - 1, 0)[..., None]
    return jnp.take_along_axis(x, last, axis=1)[:, 0]
  # Not a product with the mask: what stands in the padding may be infinite.
  total = jnp.where(mask[..., None], x, 0).sum(axis=1)
  return total / jnp.maximum(real, 1).astype(x.dtype)


def encode(
  module: nn.Module,
  x: jax.Array,
  mask: jax.Array | None,
  pooling: str,
  size: TowerSize,
  compute: Compute,
  blocks: int | None = None,
  grid: Grid | None = None,
) -> tuple[jax.Array | None, jax.Array]:
  """Returns what both towers make of embedded patches or tokens.

  Args:
    module: the tower, in which everything gets its name.
    x: BLD, without positions.
    mask: BL bool, true for real tokens; None: all are.
    pooling: see `pool`; "none": the tokens alone.
    size: of the tower.
    compute: how.
    blocks: how many there are before the tokens are returned, without a norm;
      None: all, a norm, and the pool.
    grid: of patches; see `add_position_embedding`.

  Returns:
    One vector of each sequence, BD (None where pooling is "none"), and the
    tokens after the final norm, BLD, without a class token.
  """
  if pooling == "cls":
    x, mask = _add_class_token(module, x), _class_token_mask(mask)
  x = add_position_embedding(module, x, grid)
  encoder = Encoder(
    size.depth if blocks is None else blocks,
    size.num_heads,
    size.mlp_dim,
    compute,
    norm=blocks is None,
    name="encoder",
  )
  x = encoder(x, mask)
  tokens = x[:, 1:] if pooling == "cls" else x
  if pooling == "none" or blocks is not None:
    return None, tokens
  return pool(x, pooling, size, compute, mask), tokens


def _add_class_token(module: nn.Module, x: jax.Array) -> jax.Array:
  """Puts a learned token before the first of `x`; BLD -> B(L+1)D."""
  batch, _, width = x.shape
  token = module.param("class_token", nn.initializers.zeros, (width,))
  token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, width))
  return jnp.concatenate([token, x], axis=1)


def _class_token_mask(mask: jax.Array | None) -> jax.Array | None:
  """Returns the mask with the class token, BL -> B(L+1); None stays."""
  if mask is None:
    return None
  return jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
