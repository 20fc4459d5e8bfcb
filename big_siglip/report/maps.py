"""Where texts fire in images, as pictures of the page.

Shape letters: h x w the grid of patches, H and W pixels of a picture.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from big_siglip.data import images
from big_siglip.dense import pictures
from big_siglip.models.patches import check, of_texts, Patches
from big_siglip.report import thumbnails
from big_siglip.report.thumbnails import Picture
from big_siglip.schema.sizes import has_text_tower, resolve_image
from big_siglip.trained.inference import Model
from big_siglip.trained.segmenting import patch_logits
from big_siglip.trained.vectors import sigmoid

_SIDE = 128  # Pixels of the longer side of a picture.


class Choice(NamedTuple):
  """Which patches are compared with texts.

  Attributes:
    kind: of `segmenting.KINDS`; None: see `models.patches.of_texts`.
    layer: whose tokens, as `Patches.layer`.
  """

  kind: str | None = None
  layer: int = -1


USUAL = Choice()


class Map(NamedTuple):
  """Where in an image a text fires.

  Attributes:
    text: a label, a phrase or a caption.
    picture: the image below the logits of its patches in colours.
    low: the least probability of a patch; None where it means nothing.
    high: the greatest.
  """

  text: str
  picture: Picture
  low: float | None
  high: float | None


def patches_of(model: Model, choice: Choice) -> Patches | None:
  """Returns which patches texts can be compared with; None: there are none.

  Raises:
    UserError: the tower lacks a kind or a layer that was asked for.
  """
  tower = model.config.model.image
  if not has_text_tower(model.config.model):
    return None
  asked = Patches(choice.kind or of_texts(tower), choice.layer)
  check(tower, asked)
  return asked


def told(model: Model, asked: Patches) -> str:
  """Returns in words what texts are compared with."""
  depth = resolve_image(model.config.model.image).depth
  number = asked.layer if asked.layer > 0 else depth + 1 + asked.layer
  block = "the last block" if number == depth else f"block {number} of {depth}"
  way = "the value path of" if asked.kind == "value" else "the pool after"
  return f"by {way} {block}"


def logits(
  model: Model,
  files: Sequence[Any],
  texts: Sequence[Sequence[str]],
  asked: Patches,
) -> list[dict[str, np.ndarray]]:
  """Returns the logits hw of each text of each image.

  Args:
    model: see `big_siglip.load`.
    files: of the images.
    texts: of each.
    asked: which patches.
  """
  every = list(dict.fromkeys(text for own in texts for text in own))
  vectors = model.embed_texts(every)
  grids = model.embed_patches(files, kind=asked.kind, layer=asked.layer)
  found = []
  for grid, own in zip(grids, texts, strict=True):
    rows = vectors[[every.index(text) for text in own]]
    values = patch_logits(grid, rows, model.logit_scale, model.logit_bias)
    found.append({text: values[..., i] for i, text in enumerate(own)})
  return found


def draw(
  model: Model, text: str, values: np.ndarray, shown: np.ndarray, at: np.ndarray
) -> Map:
  """Returns the map of a text.

  Args:
    model: whose logits they are.
    text: of them.
    values: hw, the logits of the patches.
    shown: uint8 [H, W, 3], the image.
    at: integers [H, W], the patch of each pixel.
  """
  low, high = float(values.min()), float(values.max())
  colours = pictures.heat(values, low, high).reshape(-1, 3)[at]
  picture = thumbnails.picture(
    pictures.over(shown, colours, 0.7), f"where it fires: {text}"
  )
  if not model.has_trained_bias:
    return Map(text, picture, None, None)
  low, high = (float(sigmoid(np.float64(x))) for x in (low, high))
  return Map(text, picture, low, high)


def places(
  model: Model, grid: tuple[int, ...], shown: np.ndarray
) -> np.ndarray:
  """Returns integers [H, W]: the patch of each pixel, numbered row by row.

  Args:
    model: whose patches they are.
    grid: (h, w) of the image's patches.
    shown: uint8 [H, W, 3], the image.
  """
  cells = np.arange(np.prod(grid)).reshape(grid)
  return model.look(Patches()).grid.to_nearest(cells, *shown.shape[:2])


def enlarged(thumbnail: np.ndarray) -> np.ndarray:
  """Returns a picture whose longer side has `_SIDE` pixels."""
  height, width = thumbnail.shape[:2]
  scale = _SIDE / max(height, width)
  size = max(round(height * scale), 1), max(round(width * scale), 1)
  if scale == 1:
    return thumbnail
  return images.resize(thumbnail, size, "nearest" if scale > 2 else "bicubic")
