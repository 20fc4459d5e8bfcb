"""Patches of a trained model: at its own resolution, another, or in windows.

Shape letters: I images, W windows of an image, h x w the grid of its patches,
C numbers of a patch.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import os
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip.data.preprocessing import Preprocess
from big_siglip.errors import UserError
from big_siglip.evaluators.embed import Embed, in_cache, make_embed
from big_siglip.evaluators.grids import Grid, unit
from big_siglip.models import patches as features
from big_siglip.models.patches import Patches
from big_siglip.schema import sizes, words
from big_siglip.trained import inputs
from big_siglip.trained.resampling import resample_positions


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


class Look:
  """Sees the patches of images, a batch of them at a time.

  Attributes:
    shape: (h, w, C).
    preprocess: what comes before the tower.
    params: of the model, for images of this size.
    embed: images -> B(h w C) float32; of windows, where there are any.
    batch_size: images, or windows, on the devices at once.
  """

  def __init__(
    self,
    config: ConfigDict,
    params: Any,
    mesh: Mesh,
    preprocess: Preprocess,
    asked: Patches,
    resolution: Resolution,
    batch_size: int,
  ) -> None:
    """Compiles nothing yet.

    Args:
      config: `config.model`.
      params: of the model.
      mesh: where they lie.
      preprocess: what comes before its towers.
      asked: which features.
      resolution: how large an image is seen.
      batch_size: images, or windows, on the devices at once.

    Raises:
      UserError: the model has no such features, or no such resolution.
    """
    features.check(config.image, asked)
    self.batch_size = batch_size
    self._own = config.image.image_size
    self._patch = _patch_size(config)
    self._size = _check(config, resolution)
    value = dataclasses.replace(preprocess.value, image_size=self._size)
    self.preprocess = Preprocess(value, preprocess.tokenizer)
    self._stride = resolution.stride and resolution.stride // self._patch
    self._is_unit = asked.kind in ("text", "value")
    self.params = params
    if not self._stride and self._size != self._own:
      config, self.params = _resampled(config, params, self._size, resolution)
    see = features.make_look(config, asked)

    side = self._size // self._patch

    def flat(params: Any, image: jax.Array) -> jax.Array:
      return in_cache(lambda x: see(params, x), image, side**2, mesh)

    self.embed: Embed = make_embed(flat, mesh, "the image tower's patches")
    width = features.width(config.image, config.embed_dim, asked)
    self.shape = side, side, width

  @property
  def grid(self) -> Grid:
    """Which part of an image the patches cover."""
    square = self.preprocess.value.square()
    return Grid(self.shape[0], self._patch, square)

  def of(self, model: Any) -> Any:
    """Returns a model whose embeddings of images are all patches of them.

    Args:
      model: the `inference.Model` that this is a look of.
    """
    return dataclasses.replace(
      model,
      params=self.params,
      preprocess=self.preprocess,
      embedders=model.embedders._replace(image=self.embed),
    )

  def prepare(self, image: inputs.ImageLike) -> np.ndarray:
    """Returns uint8 [size, size, 3], as `Model.prepare_image`."""
    return self.preprocess.image(inputs.read_image(image))

  def __call__(
    self, images: Iterable[np.ndarray], batch_size: int | None = None
  ) -> Iterator[np.ndarray]:
    """Yields float32 hwC of each image, in order.

    Args:
      images: uint8 [size, size, 3] each, of `prepare`.
      batch_size: in place of its own.
    """
    batch_size = batch_size or self.batch_size
    if not self._stride:
      for row in self._rows(images, batch_size):
        yield row.reshape(self.shape)
      return
    at = self._windows()
    cut = (part for image in images for part in self._cut(image, at))
    rows = self._rows(cut, batch_size)
    for first in rows:
      yield self._joined(first, rows, at)

  def _rows(
    self, images: Iterable[np.ndarray], batch_size: int
  ) -> Iterator[np.ndarray]:
    for batch, count in inputs.padded(images, batch_size):
      yield from np.asarray(self.embed(self.params, batch, {})[0])[:count]

  def _windows(self) -> list[tuple[int, int]]:
    """Returns where windows begin, (row, column) of patches."""
    last = (self._size - self._own) // self._patch
    steps = [*range(0, last, self._stride or 1), last]
    return [(row, column) for row in steps for column in steps]

  def _cut(self, image: np.ndarray, at: list[tuple[int, int]]):
    for row, column in at:
      top, left = row * self._patch, column * self._patch
      yield image[top : top + self._own, left : left + self._own]

  def _joined(
    self, first: np.ndarray, rows: Iterator[np.ndarray], at
  ) -> np.ndarray:
    """Returns hwC of an image: the mean of its windows, patch by patch."""
    side = self._own // self._patch
    total = np.zeros(self.shape, np.float32)
    seen = np.zeros((*self.shape[:2], 1), np.float32)
    for number, (row, column) in enumerate(at):
      window = next(rows) if number else first
      place = slice(row, row + side), slice(column, column + side)
      total[place] += window.reshape(side, side, -1)
      seen[place] += 1
    mean = total / seen
    if not self._is_unit:
      return mean
    return unit(mean)


def embed_patches(
  look: Look,
  images: Iterable[inputs.ImageLike],
  count: int | None,
  batch_size: int | None,
  add: Callable[[int], None],
) -> np.ndarray:
  """Returns IhwC float32; see `dense.Dense.embed_patches`.

  Args:
    look: sees them.
    images: what is seen.
    count: how many there are, if that is known.
    batch_size: see `Look`; None: its own.
    add: is told how many more are done.
  """
  if count is not None:
    _check_memory(count, look.shape)
  if batch_size is not None:
    batch_size = inputs.check_batch_size(batch_size)
  rows = inputs.each(images, "images", look.prepare)
  found = []
  for grid in look(rows, batch_size):
    found.append(grid)
    add(1)
  return np.stack(found) if found else np.zeros((0, *look.shape), np.float32)


def _patch_size(config: ConfigDict) -> int:
  patch = sizes.resolve_image(config.image).patch_size
  assert patch is not None  # An image tower's.
  return patch


def _check(config: ConfigDict, resolution: Resolution) -> int:
  """Returns the side of an image in pixels."""
  own, patch = config.image.image_size, _patch_size(config)
  size, stride = resolution.size, resolution.stride
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
  if stride is None:
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
  return size


def _resampled(
  config: ConfigDict, params: Any, size: int, resolution: Resolution
) -> tuple[ConfigDict, Any]:
  """Returns config and parameters for images of another size."""
  config = ConfigDict(config).copy_and_resolve_references()
  config.image.image_size = size
  old = np.asarray(params["image"]["position_embedding"])
  new = resample_positions(
    old,
    size // _patch_size(config),
    resolution.positions,
    class_token=config.image.pooling == "cls",
  )
  tower = {**params["image"], "position_embedding": new}
  return config, {**params, "image": tower}


def _check_memory(count: int, shape: tuple[int, ...]) -> None:
  """Refuses what does not fit, before the first image is read."""
  needed = 2 * 4 * count * int(np.prod(shape))  # Once in parts, once whole.
  try:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (ValueError, OSError):
    return  # Not known here.
  if needed > free:
    raise UserError(
      f"images: the patches of {count} images, {list(shape)} float32 each, "
      f"need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
      "free: give fewer at a time, or big-siglip embed --patches"
    )
