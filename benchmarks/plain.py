"""The SigLIP step that one writes in an afternoon, to compare ours with.

linen's attention, norms and dense layers with their defaults, the dense loss,
optax.adamw, and no metric but the loss. Nothing is clipped.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

State = tuple[Any, Any]  # Parameters, and what the optimizer keeps.


@dataclasses.dataclass(frozen=True)
class Plain:
  """How large the model is, and how it is computed.

  Attributes:
    width: of both towers.
    depth: blocks of each.
    heads: of attention.
    mlp_dim: hidden units.
    patch: pixels along a patch's side.
    vocab: rows of the text embedding.
    dtype: of the computation; parameters are float32.
    remat: compute blocks again for the gradient.
    scan: compile one block of a tower and loop over it.
  """

  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_dim: int = 3072
  patch: int = 16
  vocab: int = 32_000
  dtype: Any = jnp.float32
  remat: bool = False
  scan: bool = False


class Block(nn.Module):
  """Attention and MLP, norms before; BLD -> BLD."""

  plain: Plain

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies both."""
    plain, dtype = self.plain, self.plain.dtype
    y = nn.LayerNorm(dtype=dtype)(x)
    y = nn.MultiHeadDotProductAttention(plain.heads, dtype=dtype)(y, y)
    x = x + y
    y = nn.LayerNorm(dtype=dtype)(x)
    return x + _mlp(plain, y)


class Tower(nn.Module):
  """All blocks, and a norm; BLD -> BLD."""

  plain: Plain

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies them."""
    plain = self.plain
    block = Block
    if plain.remat:
      block = nn.remat(Block, prevent_cse=not plain.scan)
    if plain.scan:
      blocks = nn.scan(
        lambda block, x, _: (block(x), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=plain.depth,
      )
      x, _ = blocks(block(plain), x, None)
    else:
      for _ in range(plain.depth):
        x = block(plain)(x)
    return nn.LayerNorm(dtype=plain.dtype)(x)


class Model(nn.Module):
  """Two towers, a scale and a bias; the same operations as ours."""

  plain: Plain

  @nn.compact
  def __call__(self, image: jax.Array, text: jax.Array) -> jax.Array:
    """Returns the logits BB of uint8 images BHW3 and token ids BL."""
    plain = self.plain
    width, patch, dtype = plain.width, plain.patch, plain.dtype
    sides = (patch, patch)
    image = image.astype(dtype) / 127.5 - 1
    x = nn.Conv(width, sides, sides, padding="VALID", dtype=dtype)(image)
    x = x.reshape(len(x), -1, width)
    x = Tower(plain)(x + self._positions("image_positions", x))
    probe = self.param("probe", nn.initializers.normal(), (1, 1, width))
    probe = jnp.tile(probe, (len(x), 1, 1))
    x = nn.MultiHeadDotProductAttention(plain.heads, dtype=dtype)(probe, x)
    x = (x + _mlp(plain, nn.LayerNorm(dtype=dtype)(x)))[:, 0]

    z = nn.Embed(plain.vocab, width, dtype=dtype)(text)
    z = Tower(plain)(z + self._positions("text_positions", z))
    z = nn.Dense(width, dtype=dtype)(z[:, -1])

    scale = self.param("scale", nn.initializers.constant(np.log(10.0)), ())
    bias = self.param("bias", nn.initializers.constant(-10.0), ())
    x, z = x.astype(jnp.float32), z.astype(jnp.float32)
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    return x @ z.T * jnp.exp(scale) + bias

  def _positions(self, name: str, x: jax.Array) -> jax.Array:
    table = self.param(name, nn.initializers.normal(), (1, *x.shape[1:]))
    return table.astype(x.dtype)


def _mlp(plain: Plain, x: jax.Array) -> jax.Array:
  hidden = nn.gelu(nn.Dense(plain.mlp_dim, dtype=plain.dtype)(x))
  return nn.Dense(plain.width, dtype=plain.dtype)(hidden)


def program(
  plain: Plain, batch: dict[str, Any]
) -> tuple[Callable[[], State], Callable[..., tuple[State, dict]]]:
  """Returns jitted init and step; the step is given its state away.

  Args:
    plain: the model.
    batch: "image" uint8 and "text" int32, for their shapes without the first.
  """
  model = Model(plain)
  optimizer = optax.adamw(1e-3, b2=0.95, weight_decay=0.1)

  def init():
    one = {k: jnp.zeros((1, *x.shape[1:]), x.dtype) for k, x in batch.items()}
    params = model.init(jax.random.key(0), one["image"], one["text"])
    return params, optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, batch):
    params, opt_state = state

    def loss_of(params):
      logits = model.apply(params, batch["image"], batch["text"])
      signs = 2 * jnp.eye(len(logits)) - 1
      return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), {"loss": loss}

  return jax.jit(init), step
