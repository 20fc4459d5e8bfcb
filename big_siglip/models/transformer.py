"""The transformer that both towers share.

Shape letters: B batch, L tokens, D width, F hidden units, H heads.
"""

import functools

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import NamedSharding

from big_siglip.models.attention import (
  attention,
  choose,
  flat_attention,
  lay_back,
  lay_out,
)
from big_siglip.models.dense import Dense, gelu
from big_siglip.models.norm import layer_norm
from big_siglip.models.remat import REMAT_POLICIES
from big_siglip.models.short_attention import fills_lanes
from big_siglip.sharding import batch_devices, Slices


class Attention(nn.Module):
  """Multi-head attention; (BQD, BKD) -> BQD.

  Attributes:
    num_heads: H.
    dtype: of the computation.
    backend: name in `fields.ATTENTIONS`.
    sharding: of the batch; None: not told.
    length: of a sequence, where `lay_out` put several behind each other.
  """

  num_heads: int
  dtype: str
  backend: str
  sharding: NamedSharding | None
  length: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    """Lets the tokens `x` look at the tokens `context`."""
    width = x.shape[-1]
    heads = self.num_heads, width // self.num_heads
    length = self.length or x.shape[1]
    flat = self.backend == "short" and not fills_lanes(length)
    # Xavier over the D x D matrix that the heads make together.
    project = functools.partial(Dense, dtype=self.dtype, flat=flat)
    query, key, value = (
      checkpoint_name(project((width,), heads, name=name)(tokens), name)
      for name, tokens in (("query", x), ("key", context), ("value", context))
    )
    # Parameters are initialised on a batch of one, which cannot be split.
    sharding = None if x.shape[0] == 1 else self.sharding
    if flat:
      attend = functools.partial(flat_attention, head_size=heads[1])
    else:
      attend = functools.partial(attention, backend=self.backend)
    attended = attend(query, key, value, length=length, sharding=sharding)
    return project(heads, (width,), name="out")(attended)


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
      Dense, dtype=self.dtype, bias_init=nn.initializers.normal(stddev=1e-6)
    )
    outer, inner = x.shape[-1:], (self.mlp_dim,)
    hidden = checkpoint_name(dense(outer, inner, name="up")(x), "mlp_up")
    return dense(inner, outer, name="down")(gelu(hidden))


class Block(nn.Module):
  """Attention, then MLP, each after a norm and beside a residual; BLD -> BLD.

  Attributes:
    num_heads: H.
    mlp_dim: F.
    dtype: of the computation.
    backend: of the attention.
    sharding: of the batch; None: not told.
    length: of a sequence, where `lay_out` put several behind each other.
  """

  num_heads: int
  mlp_dim: int
  dtype: str
  backend: str
  sharding: NamedSharding | None
  length: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the block."""
    y = layer_norm(self.dtype, name="attention_norm")(x)
    attend = Attention(
      self.num_heads,
      self.dtype,
      self.backend,
      self.sharding,
      self.length,
      name="attention",
    )
    x = x + attend(y, y)
    y = layer_norm(self.dtype, name="mlp_norm")(x)
    return x + Mlp(self.mlp_dim, self.dtype, name="mlp")(y)


class Encoder(nn.Module):
  """`depth` blocks and a final norm; BLD -> BLD.

  Attributes:
    depth: number of blocks.
    num_heads: H.
    mlp_dim: F.
    dtype: of the computation.
    backend: of the attention.
    remat: name in `remat.REMAT_POLICIES`.
    scan: compile one block and loop over it, with parameters stacked along a
      leading axis: compile time does not grow with depth.
    sharding: of the activations between blocks, whose first dimension is the
      batch; None: as the compiler likes.
    slice_tokens: that go through a block at once on a device; what has more
      goes in slices, one after the other. None, or without `sharding`: all.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  dtype: str
  backend: str
  remat: str
  scan: bool
  sharding: NamedSharding | None = None
  slice_tokens: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the blocks in turn."""
    block_class = Block
    if self.remat != "none":
      # Inside a scan nothing could be merged across iterations anyway.
      block_class = nn.remat(
        Block, prevent_cse=not self.scan, policy=REMAT_POLICIES[self.remat]
      )
    batch, length, width = x.shape
    heads = self.num_heads, width // self.num_heads
    # Parameters are initialised on a batch of one, which cannot be split.
    sharding = None if batch == 1 else self.sharding
    backend = choose(self.backend, batch, length, *heads, self.dtype, sharding)
    if backend == "short":
      x = lay_out(x, sharding)
    make = functools.partial(
      block_class,
      self.num_heads,
      self.mlp_dim,
      self.dtype,
      backend,
      self.sharding,
      length,
    )
    slices = self._slices(*x.shape[:2])
    parts = tuple(slices.cut(x)) if slices else (x,)
    parts = tuple(constrain(part, sharding) for part in parts)
    if self.scan:
      parts, _ = nn.scan(
        lambda block, parts: (in_turn(block, parts, sharding), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=self.depth,
      )(make(name="blocks"), parts)
    else:
      for index in range(self.depth):
        parts = in_turn(make(name=f"block_{index}"), parts, sharding)
    x = slices.join(jnp.stack(parts)) if slices else parts[0]
    return layer_norm(self.dtype, name="norm")(lay_back(x, length, sharding))

  def _slices(self, batch: int, length: int) -> Slices | None:
    # Parameters are initialised on a batch of one.
    if self.slice_tokens is None or self.sharding is None or batch == 1:
      return None
    mesh, axes = self.sharding.mesh, self.sharding.spec[0]
    rows = batch // batch_devices(mesh)
    count = slice_count(rows, length, self.slice_tokens)
    return Slices(count, mesh, axes) if count > 1 else None


def slice_count(rows: int, length: int, limit: int) -> int:
  """Returns the fewest equal slices of `rows` of `length` within the limit.

  A single row may be longer than that.
  """
  fitting = max(1, min(rows, limit // length))
  return next(
    count
    for count in range(1, rows + 1)
    if rows % count == 0 and rows // count <= fitting
  )


def in_turn(
  block: nn.Module, parts: tuple[jax.Array, ...], sharding: NamedSharding | None
) -> tuple[jax.Array, ...]:
  """Applies a block to slices of a batch, one after the other.

  Left to itself XLA computes them side by side; then none of what they make
  stays in a TPU's fast memory, which is what slices are for.
  """
  done = []
  for part in parts:
    if done:
      part, done[-1] = jax.lax.optimization_barrier((part, done[-1]))
    done.append(constrain(block(part), sharding))
  return tuple(done)


def constrain(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
  """Says where activations lie, [B, ...]; None: as the compiler likes."""
  if sharding is None or x.shape[0] == 1:
    return x  # Parameters are initialised on a batch of one.
  return jax.lax.with_sharding_constraint(x, sharding)


class AttentionPool(nn.Module):
  """MAP head: a learned probe looks at all tokens; BLD -> BD.

  "Scaling Vision Transformers", arXiv:2106.04560. Without a residual from the
  probe, as big_vision has it.

  Attributes:
    num_heads: H.
    mlp_dim: F.
    dtype: of the computation.
    backend: of the attention.
    sharding: of the batch; None: not told.
  """

  num_heads: int
  mlp_dim: int
  dtype: str
  backend: str
  sharding: NamedSharding | None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Pools the tokens."""
    batch, _, width = x.shape
    probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
    probe = jnp.broadcast_to(probe.astype(x.dtype), (batch, 1, width))
    attend = Attention(
      self.num_heads, self.dtype, self.backend, self.sharding, name="attention"
    )
    x = attend(probe, x)
    y = layer_norm(self.dtype, name="norm")(x)
    return (x + Mlp(self.mlp_dim, self.dtype, name="mlp")(y))[:, 0]


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
