"""The transformer that both towers share.

Shape letters: B batch, L tokens, D width, F hidden units, H heads, h head size.
"""

import functools

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

# What the forward pass keeps for the backward pass; the rest is computed again.
REMAT_POLICIES = {
  "none": jax.checkpoint_policies.everything_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "projections": jax.checkpoint_policies.save_only_these_names(
    "query", "key", "value", "attention", "mlp_up"
  ),
}


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Returns softmax(query key^T / sqrt(h)) value; (BQHh, BKHh, BKHh) -> BQHh.

  Bidirectional and without padding mask, as SigLIP's towers are. The softmax is
  computed in float32.
  """
  scale = query.shape[-1] ** -0.5
  # Heads first: a CPU multiplies contiguous matrices up to twice as fast.
  query, key, value = (x.swapaxes(1, 2) for x in (query * scale, key, value))
  logits = jnp.einsum(
    "BHQh,BHKh->BHQK", query, key, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(logits).astype(value.dtype)
  return jnp.einsum("BHQK,BHKh->BHQh", weights, value).swapaxes(1, 2)


class Attention(nn.Module):
  """Multi-head attention; (BQD, BKD) -> BQD.

  Attributes:
    num_heads: H.
    dtype: of the computation.
  """

  num_heads: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    """Lets the tokens `x` look at the tokens `context`."""
    width = x.shape[-1]
    # Xavier over the D x D matrix that the heads make together.
    project = functools.partial(
      nn.DenseGeneral,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
    )
    heads = (self.num_heads, width // self.num_heads)
    query, key, value = (
      checkpoint_name(project(heads, name=name)(tokens), name)
      for name, tokens in (("query", x), ("key", context), ("value", context))
    )
    attended = checkpoint_name(attention(query, key, value), "attention")
    return project(width, axis=(-2, -1), name="out")(attended)


class Mlp(nn.Module):
  """Position-wise feed-forward network with tanh-GELU; BLD -> BLD.

  Attributes:
    mlp_dim: F.
    dtype: of the computation.
  """

  mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns down(gelu(up(x)))."""
    dense = functools.partial(
      nn.Dense,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(stddev=1e-6),
    )
    hidden = checkpoint_name(dense(self.mlp_dim, name="up")(x), "mlp_up")
    return dense(x.shape[-1], name="down")(nn.gelu(hidden, approximate=True))


class Block(nn.Module):
  """Attention, then MLP, each after a norm and beside a residual; BLD -> BLD.

  Attributes:
    num_heads: H.
    mlp_dim: F.
    dtype: of the computation.
  """

  num_heads: int
  mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the block."""
    y = layer_norm(self.dtype, name="attention_norm")(x)
    x = x + Attention(self.num_heads, self.dtype, name="attention")(y, y)
    y = layer_norm(self.dtype, name="mlp_norm")(x)
    return x + Mlp(self.mlp_dim, self.dtype, name="mlp")(y)


class Encoder(nn.Module):
  """`depth` blocks and a final norm; BLD -> BLD.

  Attributes:
    depth: number of blocks.
    num_heads: H.
    mlp_dim: F.
    dtype: of the computation.
    remat: name in `REMAT_POLICIES`.
    scan: compile one block and loop over it, with parameters stacked along a
      leading axis: compile time does not grow with depth.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  dtype: str
  remat: str
  scan: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the blocks in turn."""
    block_class = Block
    if self.remat != "none":
      # Inside a scan nothing could be merged across iterations anyway.
      block_class = nn.remat(
        Block, prevent_cse=not self.scan, policy=REMAT_POLICIES[self.remat]
      )
    make = functools.partial(
      block_class, self.num_heads, self.mlp_dim, self.dtype
    )
    if self.scan:
      x, _ = nn.scan(
        lambda block, x: (block(x), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=self.depth,
      )(make(name="blocks"), x)
    else:
      for index in range(self.depth):
        x = make(name=f"block_{index}")(x)
    return layer_norm(self.dtype, name="norm")(x)


class AttentionPool(nn.Module):
  """MAP head: a learned probe looks at all tokens; BLD -> BD.

  "Scaling Vision Transformers", arXiv:2106.04560. Without a residual from the
  probe, as big_vision has it.

  Attributes:
    num_heads: H.
    mlp_dim: F.
    dtype: of the computation.
  """

  num_heads: int
  mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Pools the tokens."""
    batch, _, width = x.shape
    probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
    probe = jnp.broadcast_to(probe.astype(x.dtype), (batch, 1, width))
    x = Attention(self.num_heads, self.dtype, name="attention")(probe, x)
    y = layer_norm(self.dtype, name="norm")(x)
    return (x + Mlp(self.mlp_dim, self.dtype, name="mlp")(y))[:, 0]


def layer_norm(dtype: str, name: str) -> nn.LayerNorm:
  """Returns LayerNorm with epsilon 1e-6 and statistics in float32."""
  return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


def add_class_token(module: nn.Module, x: jax.Array) -> jax.Array:
  """Puts a learned token before the first of `x`; BLD -> B(L+1)D."""
  batch, _, width = x.shape
  token = module.param("class_token", nn.initializers.zeros, (width,))
  token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, width))
  return jnp.concatenate([token, x], axis=1)


def add_position_embedding(module: nn.Module, x: jax.Array) -> jax.Array:
  """Adds a learned vector for every position; BLD -> BLD."""
  _, length, width = x.shape
  embedding = module.param(
    "position_embedding",
    nn.initializers.normal(stddev=width**-0.5),
    (length, width),
  )
  return x + embedding.astype(x.dtype)[None]
