"""How many patches a model sees of an image, and whether it keeps its shape.

Models of one resolution and NaFlex models have the same parameters; what
differs is what they see, and what they were trained for.
"""

from typing import Any

from big_siglip.errors import UserError
from big_siglip.models import memory
from big_siglip.schema import sizes

SQUARES = 0  # In place of a number of patches, where a model is converted.


def set_length(model: Any, max_patches: Any, path: str) -> None:
  """Sets how many patches of an image a NaFlex model sees.

  Args:
    model: `config.model`.
    max_patches: at least 1.
    path: what messages call the model.

  Raises:
    UserError: it is no such number, no such model, or no device holds so many.
  """
  if model.image.max_patches is None:
    raise UserError(
      f"max_patches={max_patches}: {path} squashes images to "
      f"{model.image.image_size} x {model.image.image_size} pixels (no NaFlex "
      "model); big-siglip import --max_patches=N makes one of the same "
      "parameters, to be trained"
    )
  _check_number(max_patches)
  memory.check(model, f"max_patches={max_patches}", max_patches, max_patches)
  model.image.max_patches = max_patches


def convert(config: Any, max_patches: int, path: str) -> None:
  """Makes a NaFlex model of one of squares, or the other way round.

  Args:
    config: `model` and `data`.
    max_patches: of a NaFlex model; `SQUARES`: one of one resolution, that of
      the grid of learned positions.
    path: what messages call the model.

  Raises:
    UserError: it is no such number, or the model has a class token, which has
      no place in a grid.
  """
  image = config.model.image
  if max_patches == SQUARES:
    image.max_patches = None
    return
  _check_number(max_patches)
  if image.pooling == "cls":
    raise UserError(
      f"max_patches={max_patches}: {path} has a class token "
      "(model.image.pooling='cls'), and NaFlex models have none"
    )
  patch = sizes.resolve_image(image).patch_size or 1
  # Pixels that no patch covers are no part of a grid.
  image.image_size = sizes.grid_side(image) * patch
  image.drop_border, image.max_patches = False, max_patches
  # Nothing is cut off or filled up.
  config.data.update({"crop": "none", "crop_fraction": 1.0})


def _check_number(max_patches: Any) -> None:
  whole = isinstance(max_patches, int) and not isinstance(max_patches, bool)
  if not whole or max_patches < 1:
    raise UserError(
      f"max_patches={max_patches!r}: must be a whole number from 1 on"
    )
