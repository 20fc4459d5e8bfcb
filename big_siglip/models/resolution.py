"""Patches of images of another size: at once, or through windows.

Shape letters: B images, S pixels along a side, L patches of it, C numbers of a
patch, h x w the grid of a window.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from big_siglip.errors import UserError
from big_siglip.models import memory
from big_siglip.models import patches as features
from big_siglip.models.patches import Patches
from big_siglip.models.resampling import resample_positions
from big_siglip.schema import sizes, words


@dataclasses.dataclass(frozen=True)
class Resolution:
  """How large a model sees an image, and whether at once.

  Attributes:
    size: side in pixels that an image is resized to; None: the model's own.
    stride: pixels from a window of the model's own size to the next; patches
      that several windows see get the mean. None: the whole image at once, with
      the position embedding resampled where the size is another.
    positions: how it is resampled; one of `words.POSITIONS`.
  """

  size: int | None = None
  stride: int | None = None
  positions: str = "big_vision"


WHOLE = Resolution()


def patch_size(config: ConfigDict) -> int:
  """Returns the pixels along a patch's side of a `config.model`."""
  patch = sizes.resolve_image(config.image).patch_size
  assert patch is not None  # An image tower's.
  return patch


def check(config: ConfigDict, resolution: Resolution) -> int:
  """Returns the side of an image in pixels.

  Args:
    config: `config.model`.
    resolution: what is asked for.

  Raises:
    UserError: the model cannot see images so, or no device holds one; names the
      argument and what is allowed.
  """
  own, patch = config.image.image_size, patch_size(config)
  size, stride = resolution.size, resolution.stride
  if config.image.max_patches is not None:
    _check_whole(resolution)
  if size is None:
    size = own
  whole = isinstance(size, int) and not isinstance(size, bool)
  if not whole or size < patch or (size % patch and size != own):
    raise UserError(
      f"size={size!r}: must be {own}, as the model was trained, or a multiple "
      f"of its patches of {patch} pixels"
    )
  if resolution.positions not in words.POSITIONS:
    allowed = ", ".join(words.POSITIONS)
    raise UserError(
      f"positions={resolution.positions!r}: must be one of {allowed}"
    )
  patches = (size // patch) ** 2
  if stride is None:
    resampled = (own // patch) ** 2 if size != own else 0
    if resampled:
      memory.check(config, f"size={size}", patches, patches, resampled)
    return size
  whole = isinstance(stride, int) and not isinstance(stride, bool)
  if not whole or stride % patch or not patch <= stride <= own:
    raise UserError(
      f"stride={stride!r}: must be a multiple of the patches of {patch} "
      f"pixels, up to {own}, the side of a window"
    )
  if size < own:
    raise UserError(
      f"size={size}: must be at least {own} for windows of that size"
    )
  memory.check(config, f"size={size}", patches, (own // patch) ** 2)
  return size


def _check_whole(resolution: Resolution) -> None:
  """Refuses what is about squares, for a model that keeps shapes."""
  for name in ("size", "stride"):
    value = getattr(resolution, name)
    if value is not None:
      raise UserError(
        f"{name}={value!r}: is for models of squares; this one keeps an "
        "image's shape, and max_patches says how finely it is seen"
      )


def make_look(
  config: ConfigDict, asked: Patches, resolution: Resolution = WHOLE
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns the function (params, image BSS3) -> BLC float32.

  As `patches.make_look`, for images of the side that `check` returns.

  Args:
    config: `config.model`.
    asked: which features.
    resolution: how large an image is seen.

  Raises:
    UserError: the model has no such features, or no such resolution.
  """
  size, own = check(config, resolution), config.image.image_size
  if resolution.stride is not None:
    return _through_windows(config, asked, size, resolution.stride)
  if size == own:
    return features.make_look(config, asked)
  config = ConfigDict(config).copy_and_resolve_references()
  config.image.image_size = size
  look, patch = features.make_look(config, asked), patch_size(config)
  class_token = config.image.pooling == "cls"
  # The resampling is linear: its matrix is what it makes of unit vectors.
  matrix = resample_positions(
    np.eye((own // patch) ** 2 + class_token, dtype=np.float32),
    size // patch,
    resolution.positions,
    class_token=class_token,
  )

  def larger(params: Any, image: jax.Array) -> jax.Array:
    tower = params["image"]
    table = tower["position_embedding"]
    table = jnp.matmul(matrix, table, precision="highest")
    tower = {**tower, "position_embedding": table}
    return look({**params, "image": tower}, image)

  return larger


def _through_windows(
  config: ConfigDict, asked: Patches, size: int, stride: int
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns the mean of what windows of the model's own size see."""
  look, patch = features.make_look(config, asked), patch_size(config)
  own = config.image.image_size
  last = (size - own) // patch
  steps = [*range(0, last, stride // patch), last]
  corners = [(row, column) for row in steps for column in steps]
  side, of_all = own // patch, size // patch

  def windowed(params: Any, image: jax.Array) -> jax.Array:
    def one(corner: jax.Array) -> jax.Array:
      at = 0, corner[0] * patch, corner[1] * patch, 0
      part = jax.lax.dynamic_slice(image, at, (len(image), own, own, 3))
      return look(params, part)

    # One after another: memory is that of one window.
    found = jax.lax.map(one, jnp.asarray(corners))
    total = jnp.zeros((len(image), of_all, of_all, found.shape[-1]))
    seen = np.zeros((1, of_all, of_all, 1), np.float32)
    for window, (row, column) in zip(found, corners, strict=True):
      place = slice(row, row + side), slice(column, column + side)
      grid = window.reshape(len(image), side, side, -1)
      total = total.at[:, *place].add(grid)
      seen[:, *place] += 1
    mean = (total / seen).reshape(len(image), of_all**2, -1)
    return features.unit(mean) if asked.kind in ("text", "value") else mean

  return windowed
