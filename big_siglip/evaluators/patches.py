"""Passes over the patches of images: the device work of dense evaluators.

Shape letters: B rows, L patches, h x w their grid, C numbers of a patch.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import progress
from big_siglip.data.batch import Image as Prepared
from big_siglip.data.preprocessing import Preprocess
from big_siglip.evaluators.embed import Embed, make_embed, Rows
from big_siglip.evaluators.grids import Grid
from big_siglip.evaluators.slices import in_cache
from big_siglip.models import merged, SigLIP
from big_siglip.models.patches import of_texts, Patches
from big_siglip.models.resolution import (
  check,
  make_look,
  patch_size,
  Resolution,
)
from big_siglip.models.towers import Image
from big_siglip.models.vision import normalize
from big_siglip.schema.sizes import has_text_tower
from big_siglip.sharding import replicated

_SEED = 0  # Of the random tower.


class Sight(NamedTuple):
  """How patches are seen: by a tower, or without any.

  Attributes:
    towers: what is asked for -> patches of a model's tower, BLC.
    of_texts: the kind that texts are compared with unless said otherwise.
    raw: the pixels of each patch, BL(3p^2): what needs no model at all.
    random: () -> parameters of the same model that never saw an image.
    preprocess: what comes before a tower.
    grid: which part of an image its patches cover.
  """

  towers: Callable[[Patches], Embed]
  of_texts: str
  raw: Embed
  random: Callable[[], Any]
  preprocess: Preprocess
  grid: Grid


Sights = Callable[[Resolution], Sight]


def make_sights(
  config: ConfigDict, mesh: Mesh, preprocess: Preprocess
) -> Sights:
  """Returns resolution -> the sight of a model.

  Args:
    config: `config.model`.
    mesh: on which the parameters lie.
    preprocess: what comes before its towers, at its own resolution.
  """
  patch = patch_size(config)

  @functools.cache
  def towers(patches: Patches, resolution: Resolution) -> Embed:
    look = make_look(config, patches, resolution)
    side = check(config, resolution) // patch
    tokens = config.image.max_patches or side**2

    def see(params: Any, image: Image) -> jax.Array:
      whole = merged(params, config)
      rows = in_cache(lambda x: look(whole, x), image, tokens, mesh)
      return rows.reshape(len(rows), tokens, -1)

    return make_embed(see, mesh, "the image tower's patches")

  def raw(params: Any, image: Image) -> jax.Array:
    del params
    if isinstance(image, Mapping):
      rows = image["patches"]
      pixels = rows.reshape(*rows.shape[:2], -1, 3)
      pixels = normalize(pixels, config.image.mean, config.image.std)
      return pixels.reshape(rows.shape)
    pixels = normalize(image, config.image.mean, config.image.std)
    side = image.shape[1] // patch
    pixels = pixels[:, : side * patch, : side * patch]
    cells = pixels.reshape(len(image), side, patch, side, patch * 3)
    return cells.swapaxes(2, 3).reshape(len(image), side * side, -1)

  @functools.cache
  def random() -> Any:
    plain = ConfigDict(config).copy_and_resolve_references()
    plain.lora.rank = 0
    side = config.image.image_size
    image = jnp.zeros((1, side, side, 3), jnp.uint8)
    text = None
    if has_text_tower(config):
      text = jnp.zeros((1, config.text.length), jnp.int32)
    start = jax.jit(SigLIP(plain).init, out_shardings=replicated(mesh))
    return start(jax.random.key(_SEED), image, text)["params"]

  pixels = make_embed(raw, mesh, "the pixels' patches")

  def sights(resolution: Resolution) -> Sight:
    size = check(config, resolution)
    value = dataclasses.replace(preprocess.value, image_size=size)
    return Sight(
      functools.partial(towers, resolution=resolution),
      of_texts(config.image),
      pixels,
      random,
      Preprocess(value, preprocess.tokenizer),
      Grid(size // patch, patch, value.square(), config.image.max_patches),
    )

  return sights


def passing(
  rows: Rows, embed: Embed, params: Any, side: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (number, hwC float32) of each image that can be read.

  All processes get all of them.

  Args:
    rows: the images.
    embed: of `Sight`.
    params: of the model.
    side: h = w, where an image does not keep its shape.
  """
  with progress.Progress(rows.count, "images") as show:
    for batch in rows.batches():
      image = batch["image"]
      labels = {name: batch[name] for name in ("index", "mask")}
      labels["grid"] = grids_of(image, side)
      patches, values = jax.device_get(embed(params, image, labels))
      for row in np.flatnonzero(values["mask"]):
        grid = values["grid"][row]
        own = patches[row, : grid.prod()].reshape(*grid, -1)
        yield int(values["index"][row]), own
        show.add(1)


def grids_of(image: Prepared, side: int) -> np.ndarray:
  """Returns the grids of a batch of images, int32 [b, 2], rows and columns.

  Args:
    image: uint8 [b, H, W, 3], or sequences of patches.
    side: h = w, where an image does not keep its shape.
  """
  if isinstance(image, Mapping):
    return image["grid"]
  return np.full((len(image), 2), side, np.int32)
