"""The config.json of transformers, and what arrays say without one."""

from collections.abc import Mapping
from typing import Any

from big_siglip.errors import UserError
from big_siglip.schema import sizes
from big_siglip.weights import naflex
from big_siglip.weights.model_config import (
  image_size_of,
  known_heads,
  make_model_config,
)

# What transformers assumes where config.json is silent.
_TOWER = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
}
_SIGLIP = {**_TOWER, "image_size": 224, "patch_size": 16}
# NaFlex models have a grid of learned positions, and no resolution.
_SIGLIP2 = {**_TOWER, "num_patches": 256, "patch_size": 16}
_FAMILIES = ("siglip", "siglip2")
_TEXT = {**_TOWER, "vocab_size": 32_000, "max_position_embeddings": 64}
# SigLIP's tower under the names of Hugging Face's own language models.
_IDEFICS = {
  **_TOWER,
  "hidden_size": 1152,
  "num_attention_heads": 16,
  "image_size": 224,
  "patch_size": 32,
}
_TOWERS = {
  "siglip_vision_model": _SIGLIP,
  "siglip2_vision_model": _SIGLIP2,
  "idefics3_vision": _IDEFICS,
  "idefics3": _IDEFICS,
  "smolvlm_vision": _IDEFICS,
  "smolvlm": _IDEFICS,
}
# Each layer is a dozen names to look for.
_MOST = {"num_hidden_layers": 1_000}
# What we compute without asking.
FIXED = {
  "hidden_act": "gelu_pytorch_tanh",
  "layer_norm_eps": 1e-6,
  "attention_dropout": 0.0,
  "num_channels": 3,
}


def is_whole(config: Mapping[str, Any]) -> bool:
  """Returns whether a config.json is of a model with two towers."""
  kinds = {"SiglipModel", "Siglip2Model"}
  return not kinds.isdisjoint(config.get("architectures") or ())


def model_config(
  config: Mapping[str, Any],
  path: str,
  towers: tuple[str, ...] = ("image", "text"),
  pooling: str = "map",
) -> Any:
  """Returns our `config.model` of a config.json.

  Args:
    config: what it holds.
    path: for messages.
    towers: that the file has: ("image", "text") or ("image",).
    pooling: of the image tower: "map", or "none" where the file has no pool.

  Raises:
    UserError: another architecture, or a setting that we have no place for.
  """
  kind = config.get("model_type")
  if "text" in towers and kind not in _FAMILIES:
    allowed = " or ".join(map(repr, _FAMILIES))
    raise UserError(f"{path}: model_type={kind!r}: must be {allowed}")
  vision = _image_section(config, kind, path)
  if "text" in towers and not vision.get("vision_use_head", True):
    raise UserError(f"{path}: vision_use_head=False: must be True")
  image = _size(vision, vision["patch_size"])
  seen = {"image": image, **_sight(vision, path)}
  if "text" not in towers:
    return make_model_config(**seen, embed_dim=image.width, pooling=pooling)
  text = _section(config.get("text_config", {}), "text_config", _TEXT, path)
  return make_model_config(
    **seen,
    text=_size(text),
    vocab_size=text["vocab_size"],
    length=text["max_position_embeddings"],
    embed_dim=text.get("projection_size", image.width),
  )


def _image_section(config, kind, path: str) -> dict[str, Any]:
  """Returns what is said of the image tower, in a part or in the whole."""
  if kind in _TOWERS and "vision_config" not in config:
    return _section(config, "config.json", _TOWERS[kind], path)
  given = config.get("vision_config", {})
  own = given.get("model_type") if isinstance(given, Mapping) else None
  if own in (None, *_FAMILIES):
    own = f"{kind}_vision_model" if kind in _FAMILIES else kind
  if own not in _TOWERS:
    raise UserError(
      f"{path}: model_type={kind!r}: must be 'siglip', or be or hold an image "
      f"tower of its kind (vision_config.model_type={own!r}: must be one of "
      f"{', '.join(_TOWERS)})"
    )
  return _section(given, "vision_config", _TOWERS[own], path)


def _sight(vision: Mapping[str, Any], path: str) -> dict[str, int]:
  """Returns image_size, and max_patches of a NaFlex model."""
  if "num_patches" not in vision:
    return {"image_size": vision["image_size"]}
  side = round(vision["num_patches"] ** 0.5)
  if side**2 != vision["num_patches"]:
    raise UserError(
      f"{path}: num_patches={vision['num_patches']}: must be a square, of the "
      "learned positions"
    )
  return naflex.sight(vision["patch_size"], side)


def _section(given, name: str, defaults, path: str) -> dict[str, Any]:
  """Returns a part of config.json, with whole numbers where they must be."""
  if not isinstance(given, Mapping):
    raise UserError(f"{path}: {name} must be a JSON object")
  section = {**defaults, **given}
  if section.get("projection_size") is None:
    section.pop("projection_size", None)
  for field in (*defaults, "projection_size"):
    value = section.get(field, 1)
    if type(value) is not int or not 1 <= value <= _MOST.get(field, 10**9):
      raise UserError(
        f"{path}: {name}.{field}={value!r}: must be a whole number, "
        f"1 to {_MOST.get(field, 10**9):,}"
      )
  for field, value in FIXED.items():
    if section.get(field, value) != value:
      raise UserError(f"{path}: {field}={section[field]!r}: must be {value!r}")
  return section


def _size(section, patch_size=None) -> sizes.TowerSize:
  return sizes.TowerSize(
    width=section["hidden_size"],
    depth=section["num_hidden_layers"],
    mlp_dim=section["intermediate_size"],
    num_heads=section["num_attention_heads"],
    patch_size=patch_size,
  )


def infer_config(
  shapes: Mapping[str, tuple[int, ...]],
  path: str,
  towers: tuple[str, ...] = ("image", "text"),
  pooling: str = "map",
) -> Any:
  """Returns our `config.model` of the arrays' shapes, without a config.json.

  Args:
    shapes: of all arrays.
    path: for messages.
    towers: as of `model_config`.
    pooling: the same.

  Raises:
    UserError: the shapes are of no known tower: how many heads share the width
      cannot be seen.
  """
  try:
    kernel = shapes["vision_model.embeddings.patch_embedding.weight"]
    tokens = shapes["vision_model.embeddings.position_embedding.weight"][0]
    width = kernel[0]
    if len(kernel) == 2:  # [D, p * p * 3]
      patch = naflex.patch_size(kernel[1])
      seen = naflex.sight(patch, round(tokens**0.5))
    else:
      patch = kernel[2]
      seen = {"image_size": image_size_of(patch, tokens)}
    image = _inferred(shapes, "vision_model", width, path, patch)
    sizes_of = dict(image=image, **seen)
    if "text" not in towers:
      return make_model_config(**sizes_of, embed_dim=width, pooling=pooling)
    vocab, width = shapes["text_model.embeddings.token_embedding.weight"]
    return make_model_config(
      **sizes_of,
      text=_inferred(shapes, "text_model", width, path),
      vocab_size=vocab,
      length=shapes["text_model.embeddings.position_embedding.weight"][0],
      embed_dim=shapes["text_model.head.weight"][0],
    )
  except (KeyError, ValueError, IndexError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{path}: holds no SigLIP model ({error})") from error


def _inferred(shapes, tower, width, path, patch=None) -> sizes.TowerSize:
  prefix = f"{tower}.encoder.layers."
  return sizes.TowerSize(
    width=width,
    depth=len({k.split(".")[3] for k in shapes if k.startswith(prefix)}),
    mlp_dim=shapes[f"{prefix}0.mlp.fc1.weight"][0],
    num_heads=known_heads(width, path),
    patch_size=patch,
  )
