"""The transformer that both towers share.

Shape letters: B batch, L tokens, D width, F hidden units, H heads.
"""

import dataclasses
import functools

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from big_siglip.models.attention import (
  attention,
  choose,
  joint_attention,
  lay_back,
  lay_out,
)
from big_siglip.models.compute import Compute
from big_siglip.models.dense import Dense, join
from big_siglip.models.norm import layer_norm
from big_siglip.models.positions import Grid, Grids
from big_siglip.models.short_attention import fills_lanes, whole_rows
from big_siglip.models.slices import apply_blocks, constrain, make_slices

# Query, key and value of so many features, joined, leave no place for the rest
# in a TPU's fast memory; fewer features, each by itself, wait for the slow one.
_WIDE = 1024


class Attention(nn.Module):
  """Multi-head attention; (BQD, BKD) -> BQD.

  Attributes:
    num_heads: H.
    compute: how.
    causal: let each query see no key after its own place.
    length: of a sequence, as `lay_out` has them.
  """

  num_heads: int
  compute: Compute
  causal: bool = False
  length: int | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    mask: jax.Array | None = None,
    parallel: jax.Array | None = None,
  ) -> jax.Array:
    """Lets the tokens `x` look at the tokens `context`, or at each other.

    Args:
      x: BQD.
      context: BKD; None: `x`.
      mask: BK bool, true for what can be looked at; None: all.
      parallel: B bool, true for those that are not causal; None: none.
    """
    width = x.shape[-1]
    heads = self.num_heads, width // self.num_heads
    length = self.length or x.shape[1]
    backend, joined = self.compute.backend, self.compute.joined
    flat = (
      backend == "short"
      and self.length is not None
      and _flat(length, self.causal)
    )
    # Xavier over the D x D matrix that the heads make together.
    project = functools.partial(Dense, dtype=self.compute.dtype, flat=flat)
    seen = x if context is None else context
    query, key, value = (
      project(tokens.shape[-1:], heads, name=name)
      for name, tokens in (("query", x), ("key", seen), ("value", seen))
    )
    if not joined:
      arrays = query(x), key(seen), value(seen)
      names = "query", "key", "value"
    elif context is None:
      arrays, names = (join(x, (query, key, value)),), ("query",)
    else:
      arrays, names = (query(x), join(seen, (key, value))), ("query", "key")
    arrays = map(checkpoint_name, arrays, names)
    told = {
      "length": length,
      "sharding": self.compute.on(x.shape[0]),
      "causal": self.causal,
      "parallel": parallel,
    }
    if joined:
      attended = joint_attention(tuple(arrays), size=heads[1], **told)
    else:
      attended = attention(*arrays, backend=backend, mask=mask, **told)
    # Where heads fill tiles (of bfloat16), they can be taken together for free.
    columns = backend == "short" and not flat and heads[1] % 16 == 0
    return project(heads, (width,), columns=columns, name="out")(attended)


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
    return dense(inner, outer, gelu=True, name="down")(hidden)


class Block(nn.Module):
  """Attention, then MLP, each after a norm and beside a residual; BLD -> BLD.

  Attributes:
    num_heads: H.
    mlp_dim: F.
    compute: how.
    causal: see `Attention`.
    length: of a sequence, as `lay_out` has them.
  """

  num_heads: int
  mlp_dim: int
  compute: Compute
  causal: bool = False
  length: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Applies the block; `mask`, BL bool, is true for real tokens."""
    dtype = self.compute.dtype
    y = layer_norm(dtype, name="attention_norm")(x)
    attend = Attention(
      self.num_heads, self.compute, self.causal, self.length, name="attention"
    )
    x = x + attend(y, mask=mask)
    y = layer_norm(dtype, name="mlp_norm")(x)
    return x + Mlp(self.mlp_dim, dtype, name="mlp")(y)


class Encoder(nn.Module):
  """`depth` blocks and a final norm; BLD -> BLD.

  Attributes:
    depth: number of blocks.
    num_heads: H.
    mlp_dim: F.
    compute: how.
    causal: see `Attention`.
    norm: whether there is a final norm.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  compute: Compute
  causal: bool = False
  norm: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Applies the blocks in turn; `mask`, BL bool, is true for real tokens."""
    compute = self._compute(x, mask)
    batch, length, _ = x.shape
    sharding = compute.on(batch)
    x = lay_out(x, compute.backend, sharding)
    if mask is not None:
      mask = jnp.pad(mask, ((0, 0), (0, x.shape[1] - length)))
    make = functools.partial(
      Block,
      self.num_heads,
      self.mlp_dim,
      compute,
      self.causal,
      length,
    )
    unit = whole_rows(length) if x.shape[0] != batch else 1
    slices = make_slices(compute, batch, x.shape[0], x.shape[1], unit)
    cut = slices.cut if slices else lambda x: x[None]
    parts = tuple(slices.cut(x)) if slices else (x,)
    parts = tuple(constrain(part, sharding) for part in parts)
    masks = None if mask is None else tuple(cut(mask))
    parts = apply_blocks(make, self.depth, compute, parts, sharding, masks)
    x = slices.join(jnp.stack(parts)) if slices else parts[0]
    x = lay_back(x, length, compute.backend, sharding)
    return layer_norm(compute.dtype, name="norm")(x) if self.norm else x

  @nn.nowrap
  def _compute(self, x: jax.Array, mask: jax.Array | None) -> Compute:
    """Returns `compute` with the backend that "auto" stands for."""
    batch, length, width = x.shape
    compute, heads = self.compute, self.num_heads
    backend = choose(
      compute.backend,
      batch,
      length,
      heads,
      width // heads,
      compute.dtype,
      compute.on(batch),
      mask=mask is not None,
      causal=self.causal,
    )
    return resolved(compute, backend, width, _flat(length, self.causal))


def resolved(
  compute: Compute, backend: str, width: int, flat: bool = False
) -> Compute:
  """Returns `compute` with its backend and what follows from that.

  Args:
    compute: how.
    backend: what "auto" stands for, or what is named.
    width: D.
    flat: whether heads lie flat for "short".
  """
  joined = backend == "short" and (flat or width < _WIDE)
  return dataclasses.replace(compute, backend=backend, joined=joined)


def _flat(length, causal):
  """Returns whether "short" takes heads that lie flat; L of a sequence."""
  return not (causal or fills_lanes(length))


def add_position_embedding(
  module: nn.Module, x: jax.Array, grid: Grid | Grids | None = None
) -> jax.Array:
  """Adds a learned vector for every position; BLD -> BLD.

  Args:
    module: where it is learned.
    x: BLD.
    grid: of patches, of which there may be more or fewer than are learned;
      what stands before them has a position of its own. None: L are learned.
  """
  _, length, width = x.shape
  before = 0 if grid is None else length - grid.count()
  embedding = module.param(
    "position_embedding",
    nn.initializers.normal(stddev=width**-0.5),
    (length if grid is None else before + grid.learned(), width),
  )
  if grid is not None and not grid.is_learned():
    patches = grid.resample(embedding[before:])
    if patches.ndim == 3:  # Each image has its own, and nothing before them.
      return x + patches.astype(x.dtype)
    embedding = jnp.concatenate([embedding[:before], patches])
  return x + embedding.astype(x.dtype)[None]
