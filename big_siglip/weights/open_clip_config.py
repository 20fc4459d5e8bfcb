"""The open_clip_config.json of a `config.model`, and preprocessing with it.

open_clip builds the image tower of a name of timm's, which stands for the size
and the pixels (timm/models/vision_transformer.py); the text tower from numbers.
"""

from typing import Any

from absl import logging

from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import UserError
from big_siglip.schema import sizes

# Tower and patch: timm's name for them, and the image sizes that it names.
_TIMM = {
  ("B", 16): ("vit_base_patch16_siglip", (224, 256, 384, 512)),
  ("B", 32): ("vit_base_patch32_siglip", (256,)),
  ("L", 16): ("vit_large_patch16_siglip", (256, 384, 512)),
  ("So400m", 14): ("vit_so400m_patch14_siglip", (224, 378, 384)),
  ("So400m", 16): ("vit_so400m_patch16_siglip", (256, 384, 512)),
  ("g-opt", 16): ("vit_giantopt_patch16_siglip", (256, 384)),
}
# NaFlex models have no resolution in their names.
_TIMM_NAFLEX = {
  ("B", 16): "naflexvit_base_patch16_siglip",
  ("So400m", 16): "naflexvit_so400m_patch16_siglip",
}
_FILTERS = ("bilinear", "bicubic")
_MODES = {
  "none": "squash",
  "center": "shortest",
  "shortest": "shortest",
  "longest": "longest",
}


def make(config: Any, tokenizer: str) -> dict[str, Any]:
  """Returns the content of open_clip_config.json.

  Args:
    config: `model` and `data`.
    tokenizer: where the tokenizer lies: a repository of the hub. In a folder
      that is read by "local-dir:" any name stands for the folder itself.

  Raises:
    UserError: timm has no name for the image tower.
  """
  model, made = config.model, Preprocessing.of(config)
  text = sizes.resolve_text(model.text)
  width = sizes.resolve_image(model.image).width
  text_config = {
    "context_length": made.text_length,
    "vocab_size": model.text.vocab_size,
    "hf_tokenizer_name": tokenizer,
    "tokenizer_kwargs": {
      "clean": "canonicalize" if made.clean == "canonical" else "whitespace"
    },
    "width": text.width,
    "heads": text.num_heads,
    "layers": text.depth,
    # It computes int(width * mlp_ratio).
    "mlp_ratio": (text.mlp_dim + 0.5) / text.width,
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_type": "linear" if model.text.head else "none",
    "proj_bias": bool(model.text.head),
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
  }
  return {
    "model_cfg": {
      "embed_dim": model.embed_dim or width,
      "init_logit_bias": -10,
      "custom_text": True,
      "vision_cfg": {
        "image_size": made.image_size,
        "timm_model_name": _image_tower(model.image),
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
      },
      "text_cfg": text_config,
    },
    "preprocess_cfg": _preprocess(made, tokenizer),
  }


def _preprocess(made: Preprocessing, name: str) -> dict[str, Any]:
  """Returns preprocess_cfg; says what is but the nearest to ours."""
  known = made.resize if made.resize in _FILTERS else "bilinear"
  for field, nearest, same in (
    ("resize", known, known == made.resize),
    ("crop", "shortest", made.crop != "center"),
    ("crop_fraction", 1.0, made.crop_fraction == 1),
  ):
    if not same:
      logging.warning(
        "%s: open_clip does not do config.data.%s=%r; %r stands there, the "
        "nearest that it knows",
        *(name, field, getattr(made, field), nearest),
      )
  return {
    "mean": list(made.mean),
    "std": list(made.std),
    "interpolation": known,
    "resize_mode": _MODES[made.crop],
    "fill_color": made.fill[0] if len({*made.fill}) == 1 else list(made.fill),
  }


def _image_tower(image: Any) -> str:
  size, pixels = sizes.resolve_image(image), image.image_size
  if image.max_patches:
    return _naflex_tower(size, sizes.grid_side(image))
  for (tower, patch), (name, known) in _TIMM.items():
    if _is(size, tower, patch) and pixels in known:
      return f"{name}_{pixels}"
  names = "; ".join(
    f"{tower}/{patch} at {', '.join(map(str, known))}"
    for (tower, patch), (_, known) in _TIMM.items()
  )
  raise UserError(
    f"config.model.image: timm, of which open_clip takes its image towers, "
    f"names none of width {size.width}, depth {size.depth}, patches of "
    f"{size.patch_size} and {pixels} pixels, but {names}; "
    "--output=FILE.safetensors writes the weights alone"
  )


def _naflex_tower(size: sizes.TowerSize, side: int) -> str:
  for (tower, patch), name in _TIMM_NAFLEX.items():
    if _is(size, tower, patch) and side == 16:
      return name
  names = ", ".join(f"{tower}/{patch}" for tower, patch in _TIMM_NAFLEX)
  raise UserError(
    f"config.model.image: timm, of which open_clip takes its image towers, "
    f"names no NaFlex tower of width {size.width}, depth {size.depth}, patches "
    f"of {size.patch_size} pixels and {side} x {side} positions, but {names} "
    "with 16 x 16; --output=FILE.safetensors writes the weights alone"
  )


def _is(size: sizes.TowerSize, tower: str, patch: int) -> bool:
  return {**vars(sizes.TOWERS[tower]), "patch_size": patch} == vars(size)
