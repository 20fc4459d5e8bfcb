"""What each patch knows: features of an image tower before it pools them.

Five kinds, of which `text` needs no training to be compared with texts. An
attention pool that looks at one patch alone gives it a weight of 1, whatever
the probe says. So the pool, applied to each patch by itself, is the function
that carries images into the space of the texts: out(value(x)), and the pool's
MLP. It has no parameter of its own.

Shape letters: B images, L patches, D width, E embedding, H heads, h head size.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from big_siglip.errors import UserError
from big_siglip.models import positions
from big_siglip.models.compute import Compute
from big_siglip.models.dense import Dense
from big_siglip.models.norm import layer_norm
from big_siglip.models.towers import Image
from big_siglip.models.transformer import Mlp
from big_siglip.models.vision import ImageTower
from big_siglip.schema import sizes
from big_siglip.schema.words import PATCHES

# Needed beside the patches themselves, by a class token's tower, too.
_ATTENTION = ("share", "attention")


@dataclasses.dataclass(frozen=True)
class Patches:
  """Which features of patches are asked for.

  Attributes:
    kind: "last": tokens, of width D. "text": the pool applied to each of them
      alone, in the space of the texts, E. "value": the same of the value path
      of block `layer`, out(value(norm(x))), which mixes no patches (MaskCLIP,
      arXiv:2112.01071). "share": what each adds to the pooled vector: the sum
      over all patches is the pool before its MLP, D. "attention": the weights
      of the pool's heads, H, which add up to 1 over the patches.
    layer: how many blocks are applied, from the end where negative: -1 all,
      -2 all but the last (`hidden_states` of transformers counts the same way).
    norm: whether the final norm comes after them; for "last" alone.
    pool_mlp: whether the pool's MLP is applied; for "text" and "value".
  """

  kind: str = "last"
  layer: int = -1
  norm: bool = True
  pool_mlp: bool = True


def check(config: Any, patches: Patches) -> None:
  """Checks that a tower has such features.

  Args:
    config: `config.model.image`.
    patches: what is asked for.

  Raises:
    UserError: it has not; names the argument and what is allowed.
  """
  kind, depth = patches.kind, sizes.resolve_image(config).depth
  if kind not in PATCHES:
    raise UserError(f"kind={kind!r}: must be one of {', '.join(PATCHES)}")
  layer = patches.layer
  whole = isinstance(layer, int) and not isinstance(layer, bool)
  if not whole or not (1 <= layer <= depth or -depth <= layer <= -1):
    raise UserError(
      f"layer={layer!r}: must be 1 ... {depth}, or -{depth} ... -1: the tower "
      f"has {depth} blocks"
    )
  if kind != "last" and not patches.norm:
    raise UserError(f"norm=False: is for kind=last; kind={kind} needs the norm")
  allowed = {
    "map": PATCHES,
    "gap": ("last", "text", "value", "share"),
    "cls": ("last", "value"),
    "none": ("last",),
  }[config.pooling]
  if kind not in allowed:
    raise UserError(
      f"kind={kind!r}: must be one of {', '.join(allowed)} for an image tower "
      f"with pooling={config.pooling}"
    )


def of_texts(config: Any) -> str:
  """Returns the kind that texts are compared with unless said otherwise.

  It is "text", which found most in the best towers that were measured
  (docs/dense.md), or "value" where a class token pools.

  Args:
    config: `config.model.image`.
  """
  return "value" if config.pooling == "cls" else "text"


def width(config: Any, embed_dim: int | None, patches: Patches) -> int:
  """Returns how many numbers a patch has.

  Args:
    config: `config.model.image`.
    embed_dim: `config.model.embed_dim`.
    patches: what is asked for.
  """
  size = sizes.resolve_image(config)
  if patches.kind == "attention":
    return size.num_heads
  if patches.kind in ("text", "value") and config.head:
    return embed_dim or size.width
  return size.width


def make_look(
  config: ConfigDict, patches: Patches
) -> Callable[[Any, Image], jax.Array]:
  """Returns the function (params, image BHW3) -> BL(D, E or H) float32.

  Patches are in rows, from the top left. "text" and "value" are of length 1. Of
  sequences of patches those behind the grid mean nothing, and have no share.

  Args:
    config: `config.model`; its image_size is that of the images, for which the
      position embedding must have been resampled.
    patches: see `check`, which raises what is wrong with them.
  """
  check(config.image, patches)
  size = sizes.resolve_image(config.image)
  blocks = patches.layer % (size.depth + 1)
  if patches.kind == "value":
    blocks -= 1
  compute = Compute(config.dtype, config.attention, scan=config.scan)
  first = ImageTower(config.image, size.width, compute, blocks)

  def look(params: Any, image: Image) -> jax.Array:
    tower, real = params["image"], None
    if isinstance(image, Mapping):
      real = positions.real(image["grid"], image["patches"].shape[1])
    x = _apply(
      first, {**tower, "encoder": _before(tower["encoder"], blocks)}, image
    )[1]
    if patches.kind == "value":
      block = _block(tower["encoder"], blocks)
      x = _apply(layer_norm(compute.dtype, "n"), block["attention_norm"], x)
      x = _values_out(block["attention"], x, size, compute)
    if patches.norm:
      x = _apply(layer_norm(compute.dtype, "n"), tower["encoder"]["norm"], x)
    if patches.kind in ("text", "value"):
      x = _alone(tower, x, config, patches, compute)
    elif patches.kind in _ATTENTION:
      x = _shares(tower, x, real, config.image, patches.kind, compute)
    return x.astype(jnp.float32)

  return look


def _before(encoder: Mapping[str, Any], blocks: int) -> dict[str, Any]:
  """Returns the parameters of the first blocks, stacked or not."""
  if "blocks" in encoder:
    first = jax.tree.map(lambda leaf: leaf[:blocks], encoder["blocks"])
    return {"blocks": first} if blocks else {}
  return {f"block_{i}": encoder[f"block_{i}"] for i in range(blocks)}


def _block(encoder: Mapping[str, Any], number: int) -> Any:
  """Returns the parameters of one block, stacked or not."""
  if "blocks" in encoder:
    return jax.tree.map(lambda leaf: leaf[number], encoder["blocks"])
  return encoder[f"block_{number}"]


def _values_out(
  params: Any, x: jax.Array, size: sizes.TowerSize, compute: Compute
) -> jax.Array:
  """Returns out(value(x)): attention that looks at itself alone; BLD -> BLD."""
  heads = size.num_heads, size.width // size.num_heads
  value = Dense((size.width,), heads, compute.dtype)
  out = Dense(heads, (size.width,), compute.dtype)
  return _apply(out, params["out"], _apply(value, params["value"], x))


def _alone(
  tower: Mapping[str, Any],
  x: jax.Array,
  config: ConfigDict,
  patches: Patches,
  compute: Compute,
) -> jax.Array:
  """Returns what the tower makes of each token alone, of length 1; BLD->BLE."""
  size = sizes.resolve_image(config.image)
  if config.image.pooling == "map":
    x = _values_out(tower["pool"]["attention"], x, size, compute)
    if patches.pool_mlp:
      y = _apply(layer_norm(compute.dtype, "n"), tower["pool"]["norm"], x)
      mlp = Mlp(size.mlp_dim, compute.dtype)
      x = x + _apply(mlp, tower["pool"]["mlp"], y)
  if config.image.head:
    embed_dim = config.embed_dim or size.width
    head = nn.Dense(embed_dim, use_bias=False, dtype=compute.dtype)
    x = _apply(head, tower["head"], x)
  return unit(x.astype(jnp.float32))


def unit(x: jax.Array) -> jax.Array:
  """Returns vectors of length 1, along the last axis, as the towers do."""
  return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


def _shares(
  tower: Mapping[str, Any],
  x: jax.Array,
  real: jax.Array | None,
  config: Any,
  kind: str,
  compute: Compute,
) -> jax.Array:
  """Returns each patch's part of the pooled vector BLD, or its weights BLH."""
  count: Any = x.shape[1]
  if real is not None:  # BL bool
    count = real.sum(axis=1)[:, None, None].astype(x.dtype)
    x = jnp.where(real[..., None], x, 0)
  if config.pooling == "gap":
    return x / count
  size = sizes.resolve_image(config)
  params, dtype = tower["pool"]["attention"], compute.dtype
  heads = size.num_heads, size.width // size.num_heads
  project = Dense((size.width,), heads, dtype)
  probe = tower["pool"]["probe"].astype(x.dtype)
  query = _apply(project, params["query"], probe)[0, 0]  # Hh
  key = _apply(project, params["key"], x)  # BLHh
  scores = jnp.einsum("Hh,BLHh->BLH", query, key).astype(jnp.float32)
  if real is not None:
    least = jnp.finfo(jnp.float32).min
    scores = jnp.where(real[..., None], scores, least)
  weights = jax.nn.softmax(scores / heads[1] ** 0.5, axis=1)
  if kind == "attention":
    return weights
  value = _apply(project, params["value"], x)
  kernel, bias = (params["out"][n].astype(dtype) for n in ("kernel", "bias"))
  weighted = weights.astype(dtype)[..., None] * value
  # The bias is given to all alike, so that the parts add up to the whole.
  bias = bias[None, None] / count
  return jnp.einsum("BLHh,HhD->BLD", weighted, kernel) + bias


def _apply(module: nn.Module, params: Any, x: Image) -> Any:
  return module.apply({"params": params}, x)
