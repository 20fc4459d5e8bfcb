"""From the dimensions of a published model to our `config.model`."""

import dataclasses

from ml_collections import config_dict, ConfigDict

from big_siglip.errors import UserError
from big_siglip.schema import sizes


def make_model_config(
  *,
  image: sizes.TowerSize,
  image_size: int,
  embed_dim: int,
  text: sizes.TowerSize | None = None,
  vocab_size: int | None = None,
  length: int | None = None,
  text_head: bool = True,
  pooling: str = "map",
  max_patches: int | None = None,
) -> ConfigDict:
  """Returns a `config.model` in float32.

  Args:
    image: the image tower.
    image_size: pixels.
    embed_dim: of the embeddings.
    text: the text tower; None: there is none.
    vocab_size: of the text tower.
    length: tokens of a text.
    text_head: whether the text tower has a projection.
    pooling: of the image tower: "map", as all of SigLIP, or "none".
    max_patches: of a NaFlex model, as published with it; None: it sees squares.
  """
  tower, patch = _name(image), image.patch_size or 1
  model = ConfigDict(
    {
      "image": {
        "size": f"{tower}/{patch}",
        "image_size": image_size,
        "pooling": pooling,
        "head": False,
        # So400m/14 sees 378 of 384 pixels.
        "drop_border": image_size % patch != 0,
        "max_patches": max_patches or config_dict.placeholder(int),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "patch_size": config_dict.placeholder(int),
        **_overrides(image, tower),
      },
      "embed_dim": embed_dim,
      "dtype": "float32",
      "attention": "auto",
      "remat": "none",
      "keep_blocks": 0,
      "scan": True,
      "slice_tokens": config_dict.placeholder(int),
      "lora": {"rank": 0, "alpha": 8.0, "targets": ".*/attention/.*/kernel"},
      "logit_scale_init": 10.0,
      "logit_bias_init": -10.0,
    }
  )
  if text is not None:
    model.text = {
      "size": _name(text),
      "vocab_size": vocab_size,
      "length": length,
      "pooling": "last",
      "head": text_head,
      **_overrides(text, _name(text)),
    }
  return model


def image_size_of(patch: int, positions: int) -> int:
  """Returns the pixels of an image that so many square patches cover.

  Arrays do not say how many more no patch covers. The published models with
  pixels to spare are So400m/14 of SigLIP and SigLIP 2, 27 patches of 384.
  """
  side = round(positions**0.5)
  return 384 if (patch, side) == (14, 27) else patch * side


def known_heads(width: int, path: str) -> int:
  """Returns the heads of the published tower of that width."""
  for size in sizes.TOWERS.values():
    if size.width == width:
      return size.num_heads
  raise UserError(
    f"{path}: no published tower has width {width}, and nothing beside it (the "
    "config.json of transformers) says how many heads share it"
  )


def _name(size: sizes.TowerSize) -> str:
  """Returns the tower with these dimensions, or "mu" to be overridden.

  One with fewer blocks is that tower still: language models cut the last off.
  """
  for name, known in sizes.TOWERS.items():
    same = dataclasses.replace(size, patch_size=None, depth=known.depth)
    if same == known and size.depth <= known.depth:
      return name
  return "mu"


def _overrides(size: sizes.TowerSize, name: str) -> dict[str, int | None]:
  known = sizes.TOWERS[name]
  fields = ("width", "depth", "mlp_dim", "num_heads")
  return {
    field: config_dict.placeholder(int)
    if getattr(size, field) == getattr(known, field)
    else getattr(size, field)
    for field in fields
  }
