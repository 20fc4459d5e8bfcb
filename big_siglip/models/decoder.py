"""The decoder of captions and boxes: it writes what an image tower sees.

LocCa's (arXiv:2403.19596) as SigLIP 2 has it (arXiv:2502.14786, section 2.2):
the text tower's shapes, half as many blocks, and cross-attention to the image's
tokens before pooling. Order of the layers: big_vision's
models/proj/cappa/cappa.py.

Shape letters: B images, T texts of each, L tokens of one, R = T L tokens of
all, D width, H heads, F hidden units, K image tokens, C their width, V
vocabulary.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from big_siglip.models.compute import Compute
from big_siglip.models.embedding import token_embedding
from big_siglip.models.norm import layer_norm
from big_siglip.models.short_attention import fills_lanes, holds
from big_siglip.models.slices import apply_blocks, constrain, make_slices
from big_siglip.models.transformer import (
  add_position_embedding,
  Attention,
  Mlp,
  resolved,
)
from big_siglip.schema.sizes import TowerSize
from big_siglip.schema.words import KERNELS
from big_siglip.sharding import batch_devices

START = 0  # The id of the padding, before the first token.


class Decoded(NamedTuple):
  """What a decoder makes of its inputs: logits = hidden kernel + bias.

  Attributes:
    hidden: BTLD after the final norm.
    kernel: DV float32.
    bias: V float32.
  """

  hidden: jax.Array
  kernel: jax.Array
  bias: jax.Array


class DecoderBlock(nn.Module):
  """Self-attention, cross-attention, MLP, each after a norm; BRD -> BRD.

  Keys and values of the image are computed once for its T texts: to them these
  are one sequence of R queries.

  Attributes:
    num_heads: H.
    mlp_dim: F.
    length: L.
    compute: how.
  """

  num_heads: int
  mlp_dim: int
  length: int
  compute: Compute

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array,
    mask: jax.Array | None,
    parallel: jax.Array | None,
  ) -> jax.Array:
    """Applies the block; the other arguments are those of `Decoder`."""
    dtype = self.compute.dtype
    y = layer_norm(dtype, name="attention_norm")(x)
    attend = Attention(
      self.num_heads, self.compute, True, self.length, name="attention"
    )
    if self.compute.backend != "short":  # Which has texts beside each other.
      y = y.reshape(-1, self.length, y.shape[-1])
      parallel = None if parallel is None else parallel.reshape(-1)
    x = x + attend(y, parallel=parallel).reshape(x.shape)
    y = layer_norm(dtype, name="cross_attention_norm")(x)
    cross = Attention(self.num_heads, self.compute, name="cross_attention")
    x = x + cross(y, context, mask)
    y = layer_norm(dtype, name="mlp_norm")(x)
    return x + Mlp(self.mlp_dim, dtype, name="mlp")(y)


class Logits(nn.Module):
  """Kernel and bias of the logits, both zeros at first; -> (DV, V).

  Attributes:
    width: D.
    vocab_size: V.
    tied: the bias alone; the kernel is that of the token embedding.
  """

  width: int
  vocab_size: int
  tied: bool

  @nn.compact
  def __call__(self, table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both; `table` is the token embedding, VD."""
    zeros = nn.initializers.zeros
    bias = self.param("bias", zeros, (self.vocab_size,))
    if self.tied:
      return table.T, bias
    shape = self.width, self.vocab_size
    return self.param("kernel", zeros, shape), bias


class Decoder(nn.Module):
  """Writes the texts of images, all of their tokens at once.

  Attributes:
    size: of the text tower, with the depth of the decoder.
    vocab_size: V.
    length: L.
    tie_embedding: let the token embedding be the logits' kernel.
    compute: how. A kernel that is named there and cannot do both attentions is
      the towers' matter.
  """

  size: TowerSize
  vocab_size: int
  length: int
  tie_embedding: bool
  compute: Compute

  @nn.compact
  def __call__(
    self,
    targets: jax.Array,
    context: jax.Array,
    mask: jax.Array | None = None,
    parallel: jax.Array | None = None,
  ) -> Decoded:
    """Returns what stands for each target, of what comes before it.

    Args:
      targets: BTL int32, 0 <= id < V. They are shifted right here, so that
        position i sees those before i, and `START`.
      context: BKC, the image's tokens.
      mask: BK bool, true for real ones; None: all are.
      parallel: BT bool: where true every input is the same learned vector, and
        each position sees all others: it knows the image and its place alone.
        None: nowhere.
    """
    size = self.size
    compute = self._compute(targets, context, mask)
    table = token_embedding(self.vocab_size, size.width, compute.dtype)
    unknown = self.param(
      "mask_embedding",
      nn.initializers.normal(stddev=size.width**-0.5),
      (size.width,),
    )
    x = table(shift_right(targets))
    if parallel is not None:
      hidden = unknown.astype(x.dtype).reshape(1, 1, 1, -1)
      x = jnp.where(parallel[:, :, None, None], hidden, x)
    shape = x.shape
    x = add_position_embedding(self, x.reshape(-1, *shape[2:])).reshape(shape)
    x = self._blocks(x, context, mask, parallel, compute)
    x = layer_norm(compute.dtype, name="norm")(x)
    logits = Logits(
      size.width, self.vocab_size, self.tie_embedding, name="logits"
    )
    return Decoded(x, *logits(table.embedding))

  @nn.nowrap
  def _compute(self, targets, context, mask) -> Compute:
    compute, batch = self.compute, targets.shape[0]
    if compute.backend not in KERNELS:
      return compute
    sharding, (texts, length) = compute.on(batch), targets.shape[1:]
    queries = texts * length
    short = (
      compute.backend == "short"
      and mask is None
      and batch > 1  # Parameters are initialised on one.
      and (texts > 1 or fills_lanes(length))
      and holds(queries, max(queries, context.shape[1]))
    )
    if short and sharding is not None:
      mesh, heads = sharding.mesh, self.size.num_heads
      short = not (batch % batch_devices(mesh) or heads % mesh.shape["tensor"])
    backend = "short" if short else "auto"
    return resolved(compute, backend, self.size.width)

  def _blocks(self, x, context, mask, parallel, compute):
    size, (batch, texts, length, width) = self.size, x.shape
    sharding = compute.on(batch)
    make = functools.partial(
      DecoderBlock,
      size.num_heads,
      size.mlp_dim,
      length,
      compute,
    )
    slices = make_slices(compute, batch, batch, texts * length)

    def cut(x):
      parts = tuple(slices.cut(x)) if slices else (x,)
      return tuple(constrain(part, sharding) for part in parts)

    parts = cut(x.reshape(batch, texts * length, width))
    others = [
      None if other is None else cut(other)
      for other in (context, mask, parallel)
    ]
    parts = apply_blocks(make, size.depth, compute, parts, sharding, *others)
    x = slices.join(jnp.stack(parts)) if slices else parts[0]
    return x.reshape(batch, texts, length, width)


def shift_right(targets: jax.Array) -> jax.Array:
  """Returns ids one place later, after `START`; [..., L] -> [..., L]."""
  start = jnp.full_like(targets[..., :1], START)
  return jnp.concatenate([start, targets[..., :-1]], axis=-1)
