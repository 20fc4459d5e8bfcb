"""Named sizes of the towers; imports no JAX, so that configs check fast."""

import dataclasses
from typing import Any

from big_siglip.errors import UserError

# Names of the recomputation policies; `transformer.REMAT_POLICIES` has them.
REMAT_NAMES = ("none", "full", "dots", "projections")


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


def resolve_image(config: Any) -> TowerSize:
  """Returns the dimensions of the image tower.

  Args:
    config: `config.model.image`: `size` is "TOWER/PATCH", such as
      "So400m/14"; width, depth, mlp_dim, num_heads and patch_size override it
      where they are not None.

  Raises:
    UserError: the name is not known.
  """
  tower, slash, patch = config.size.partition("/")
  if tower not in TOWERS or not slash or not patch.isdecimal():
    raise UserError(
      f"config.model.image.size={config.size!r}: must be TOWER/PATCH, with "
      f"TOWER one of {', '.join(TOWERS)} and PATCH in pixels, such as B/16"
    )
  size = _override(TOWERS[tower], config)
  return dataclasses.replace(size, patch_size=config.patch_size or int(patch))


def resolve_text(config: Any) -> TowerSize:
  """Returns the dimensions of the text tower.

  Args:
    config: `config.model.text`: `size` is a name of `TOWERS`; width, depth,
      mlp_dim and num_heads override it where they are not None.

  Raises:
    UserError: the name is not known.
  """
  if config.size not in TOWERS:
    raise UserError(
      f"config.model.text.size={config.size!r}: must be one of "
      f"{', '.join(TOWERS)}"
    )
  return _override(TOWERS[config.size], config)


def _override(size: TowerSize, config: Any) -> TowerSize:
  fields = ("width", "depth", "mlp_dim", "num_heads")
  given = {
    field: config[field] for field in fields if config[field] is not None
  }
  return dataclasses.replace(size, **given)
