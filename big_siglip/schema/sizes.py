"""Named sizes of the towers."""

import dataclasses
from typing import Any

from big_siglip.errors import UserError


@dataclasses.dataclass(frozen=True)
class TowerSize:
  """Dimensions of one transformer tower.

  Attributes:
    width: D, of the residual stream.
    depth: number of blocks.
    mlp_dim: F, hidden units of each MLP.
    num_heads: attention heads; each has width / num_heads dimensions.
    patch_size: pixels along a patch's side; None in text towers.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: int | None = None


# SigLIP's towers: arXiv:2303.15343 and arXiv:2502.14786, with the shapes of
# "Scaling Vision Transformers" (2106.04560) and "Getting ViT in Shape"
# (2305.13035, So400m). mu, Ti and S are for tests and small machines.
TOWERS = {
  "mu": TowerSize(width=32, depth=1, mlp_dim=128, num_heads=2),
  "Ti": TowerSize(width=192, depth=12, mlp_dim=768, num_heads=3),
  "S": TowerSize(width=384, depth=12, mlp_dim=1536, num_heads=6),
  "B": TowerSize(width=768, depth=12, mlp_dim=3072, num_heads=12),
  "L": TowerSize(width=1024, depth=24, mlp_dim=4096, num_heads=16),
  "So400m": TowerSize(width=1152, depth=27, mlp_dim=4304, num_heads=16),
  "g-opt": TowerSize(width=1536, depth=40, mlp_dim=6144, num_heads=16),
}


def has_text_tower(model: Any) -> bool:
  """Returns whether a `config.model` has one, and is no image tower alone.

  Weights may be those of an image tower: to embed images with, or to train a
  text tower to. Then `config.model` has no section `text`.
  """
  return model.get("text") is not None


def resolve_image(config: Any) -> TowerSize:
  """Returns the dimensions of the image tower.

  Args:
    config: `config.model.image`: `size` is "TOWER/PATCH", such as
      "So400m/14"; width, depth, mlp_dim, num_heads and patch_size override it
      where they are not None.

  Raises:
    UserError: the name is not known, or a number is less than 1.
  """
  tower, slash, patch = config.size.partition("/")
  if tower not in TOWERS or not slash or not patch.isdecimal():
    raise UserError(
      f"config.model.image.size={config.size!r}: must be TOWER/PATCH, with "
      f"TOWER one of {', '.join(TOWERS)} and PATCH in pixels, such as B/16"
    )
  named = dataclasses.replace(TOWERS[tower], patch_size=int(patch))
  return _override(named, config, "image")


def grid_side(image: Any) -> int:
  """Returns how many positions a side of an image tower's grid has.

  Args:
    image: `config.model.image`.
  """
  return image.image_size // (resolve_image(image).patch_size or 1)


def resolve_text(config: Any) -> TowerSize:
  """Returns the dimensions of the text tower.

  Args:
    config: `config.model.text`: `size` is a name of `TOWERS`; width, depth,
      mlp_dim and num_heads override it where they are not None.

  Raises:
    UserError: the name is not known, or a number is less than 1.
  """
  if config.size not in TOWERS:
    raise UserError(
      f"config.model.text.size={config.size!r}: must be one of "
      f"{', '.join(TOWERS)}"
    )
  return _override(TOWERS[config.size], config, "text")


def _override(named: TowerSize, config: Any, tower: str) -> TowerSize:
  size = {}
  for field, value in dataclasses.asdict(named).items():
    if value is None:  # The text tower has no patches.
      continue
    given = config[field]
    size[field] = value if given is None else given
    if size[field] < 1:
      raise UserError(
        f"config.model.{tower}.{field}={size[field]!r}: must be at least 1"
      )
  return TowerSize(**size)
