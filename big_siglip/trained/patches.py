"""Patches of a trained model: at its own resolution, another, or in windows.

Shape letters: B and I images, h x w the grid of their patches, C numbers of a
patch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip.data.batch import Image as PreparedImage
from big_siglip.data.preprocessing import Preprocess
from big_siglip.errors import UserError
from big_siglip.evaluators.embed import Embed, make_embed
from big_siglip.evaluators.grids import Grid
from big_siglip.evaluators.slices import in_cache
from big_siglip.models import patches as features
from big_siglip.models import positions
from big_siglip.models import resolution as resolutions
from big_siglip.models.patches import Patches
from big_siglip.models.resolution import Resolution
from big_siglip.models.towers import Image
from big_siglip.trained import inputs


class Look:
  """Sees the patches of images, a batch of them at a time.

  Attributes:
    shape: (h, w, C); where images keep their shape, (max_patches, C).
    preprocess: what comes before the tower.
    params: of the model, for images of this size.
    embed: images -> B(h w C) float32; behind an image's own grid are zeros.
    batch_size: images on the devices at once.
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
      batch_size: images on the devices at once.

    Raises:
      UserError: the model has no such features, or no such resolution.
    """
    features.check(config.image, asked)
    self.batch_size = batch_size
    self._patch = resolutions.patch_size(config)
    self._length = config.image.max_patches
    size = resolutions.check(config, resolution)
    value = dataclasses.replace(preprocess.value, image_size=size)
    self.preprocess = Preprocess(value, preprocess.tokenizer)
    self.params = params
    see = resolutions.make_look(config, asked, resolution)
    side = size // self._patch

    def flat(params: Any, image: Image) -> jax.Array:
      tokens = self._length or side**2
      rows = in_cache(lambda x: see(params, x), image, tokens, mesh)
      if not isinstance(image, Mapping):
        return rows
      real = positions.real(image["grid"], tokens)
      cells = rows.reshape(*real.shape, -1)
      return jnp.where(real[..., None], cells, 0).reshape(rows.shape)

    self.embed: Embed = make_embed(flat, mesh, "the image tower's patches")
    width = features.width(config.image, config.embed_dim, asked)
    grid = (side, side) if self._length is None else (self._length,)
    self.shape = *grid, width

  @property
  def keeps_shape(self) -> bool:
    """Whether each image has a grid of its own (NaFlex)."""
    return self._length is not None

  @property
  def grid(self) -> Grid:
    """Which part of an image the patches cover."""
    value = self.preprocess.value
    side = value.image_size // self._patch
    return Grid(side, self._patch, value.square(), self._length)

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

  def prepare(self, image: inputs.ImageLike) -> PreparedImage:
    """Returns what `Model.prepare_image` does, of this size."""
    return self.preprocess.image(inputs.read_image(image))

  def __call__(
    self, images: Iterable[PreparedImage], batch_size: int | None = None
  ) -> Iterator[np.ndarray]:
    """Yields float32 hwC of each image, in order.

    Args:
      images: of `prepare`.
      batch_size: in place of its own.
    """
    batch_size = batch_size or self.batch_size
    for batch, count in inputs.padded(images, batch_size):
      rows = np.asarray(self.embed(self.params, batch, {})[0])[:count]
      rows = rows.reshape(count, *self.shape)
      if not isinstance(batch, Mapping):
        yield from rows
        continue
      for row, grid in zip(rows, batch["grid"][:count], strict=True):
        yield row[: grid.prod()].reshape(*grid, -1)


def embed_patches(
  look: Look,
  images: Iterable[inputs.ImageLike],
  count: int | None,
  batch_size: int | None,
  add: Callable[[int], None],
) -> Any:
  """Returns IhwC float32, or hwC of each; see `dense.Dense.embed_patches`.

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
  if look.keeps_shape:
    return found
  return np.stack(found) if found else np.zeros((0, *look.shape), np.float32)


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
