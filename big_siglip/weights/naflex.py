"""What NaFlex models have in other shapes: patches' kernel, and positions.

They have no resolution: patches go through a linear map, and positions are a
grid. All else has the names and shapes of models of one resolution.
"""

import math

from big_siglip.weights.rules import Layout

# What the image processors of published models ask for.
MAX_PATCHES = 256

# The kernel of a linear map of patches: [pixels and colors, outputs].
KERNEL = Layout(
  lambda s: (math.prod(s[:3]), s[3]),
  lambda a, s: a.reshape(s),
  lambda a: a.reshape(-1, a.shape[3]),
)


def grid(side: int, leading: bool = False) -> Layout:
  """Positions as a grid, [side, side, D], perhaps with a leading axis of one.

  Args:
    side: of the grid; ours are LD, row by row.
    leading: whether there is such an axis.
  """
  lead = (1,) if leading else ()
  return Layout(
    lambda s: (*lead, side, side, s[1]),
    lambda a, s: a.reshape(s),
    lambda a: a.reshape(*lead, side, side, -1),
  )


def sight(patch: int, side: int) -> dict[str, int]:
  """Returns image_size and max_patches of the model of some arrays.

  Args:
    patch: pixels along a patch's side.
    side: of the grid of learned positions.
  """
  return {"image_size": patch * side, "max_patches": MAX_PATCHES}


def patch_size(inputs: int) -> int:
  """Returns the side of a patch with so many numbers, of three colors."""
  return round((inputs / 3) ** 0.5)
