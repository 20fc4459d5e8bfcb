"""A model in one line."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip.schema.sizes import (
  has_text_tower,
  resolve_image,
  resolve_text,
  TOWERS,
  TowerSize,
)

_UNITS = (("B", 1e9), ("M", 1e6), ("k", 1e3))


def describe(model: ConfigDict, params: Any, mesh: Mesh, path: str) -> str:
  """Returns what a model is, without a line break.

  Args:
    model: `config.model`.
    params: its parameters.
    mesh: where they lie.
    path: where it comes from.
  """
  image = resolve_image(model.image)
  tower, length = _tower(model.image, image), model.image.max_patches
  sight = f"image {tower} at {model.image.image_size} px"
  if length:
    sight = f"image {tower} of up to {length} patches, in its own shape"
  parts = ["SigLIP" if has_text_tower(model) else "image tower alone", sight]
  if has_text_tower(model):
    text = _tower(model.text, resolve_text(model.text))
    parts.append(f"text {text} of {model.text.length} tokens")
  if model.image.pooling != "none":
    parts.append(f"embeddings of {model.embed_dim or image.width}")
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  parts.append(f"{_short(count)} parameters")
  devices = mesh.devices.size
  kind = mesh.devices.flat[0].platform
  parts.append(f"{model.dtype} on {devices} {kind}{'s' * (devices > 1)}")
  return f"<big_siglip.Model {path!r}: {', '.join(parts)}>"


def no_pool(model: ConfigDict) -> str:
  """Returns what to say of an image tower that embeds no image."""
  name = model.image.size.partition("/")[0]
  here, whole = resolve_image(model.image).depth, TOWERS[name].depth
  missing = ""
  if here < whole:  # It was cut off before its end.
    missing = f" and just {here} of the {whole} blocks of {name}"
  return (
    f"its image tower has no pool{missing}: it has no embedding of an image; "
    "Model.embed_patches gives its tokens, and config.model.image.pooling=gap "
    "trains on their mean"
  )


def _tower(config: ConfigDict, size: TowerSize) -> str:
  """Returns a tower's name; of one that has none, "DEPTHxWIDTH/PATCH"."""
  name, _, patch = config.size.partition("/")
  named = dataclasses.replace(
    TOWERS[name], patch_size=int(patch) if patch else None
  )
  if size == named:
    return config.size
  end = f"/{size.patch_size}" if size.patch_size else ""
  return f"{size.depth}x{size.width}{end}"


def _short(count: int) -> str:
  for unit, size in _UNITS:
    if count >= size:
      return f"{count / size:.1f} {unit}"
  return str(count)
