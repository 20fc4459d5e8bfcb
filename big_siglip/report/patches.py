"""What a run's patches know of a row of held-out images.

Shape letters: h x w the grid of patches, H and W pixels of a picture.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from big_siglip.data import images, masks
from big_siglip.data.sources import Example
from big_siglip.dense import pictures
from big_siglip.errors import naming_evaluation, UserError
from big_siglip.evaluators.dense import mask_classes
from big_siglip.models.patches import check, Patches
from big_siglip.report import thumbnails
from big_siglip.report.pool import Pool, Wanted
from big_siglip.report.thumbnails import Picture
from big_siglip.schema.sizes import has_text_tower
from big_siglip.trained.inference import Model
from big_siglip.trained.segmenting import KINDS, patch_logits
from big_siglip.trained.vectors import sigmoid

_COUNT = 6  # Images of a row.
_TEXTS = 2  # Classes of an image, at most.
_SIDE = 128  # Pixels of the longer side of a picture.


class Map(NamedTuple):
  """Where in an image a text fires.

  Attributes:
    text: a label or a caption.
    picture: the image below the logits of its patches in colours.
    low: the least probability of a patch; None where it means nothing.
    high: the greatest.
  """

  text: str
  picture: Picture
  low: float | None
  high: float | None


class Seen(NamedTuple):
  """One image.

  Attributes:
    picture: of it.
    components: the first three of its patches, as colours.
    maps: of its texts.
  """

  picture: Picture
  components: Picture
  maps: Sequence[Map]


class Row(NamedTuple):
  """What one run sees.

  Attributes:
    grid: such as "14 x 14"; or "up to 256" where images keep their shape.
    kind: of the patches that texts are compared with; "" for none.
    images: the same ones for each run.
  """

  grid: str
  kind: str
  images: Sequence[Seen]


def look(model: Model, pool: Pool, asked: Wanted) -> Row:
  """Returns what a model's patches know of the first images of a pool.

  Args:
    model: see `big_siglip.load`.
    pool: the examples.
    asked: how the run is evaluated on them.

  Raises:
    UserError: the names of the classes of masks cannot be read.
  """
  chosen = np.linspace(0, len(pool.index) - 1, min(_COUNT, len(pool.index)))
  numbers = list(dict.fromkeys(chosen.astype(int).tolist()))
  examples = [pool.source[pool.index[number]] for number in numbers]
  names = _class_names(asked)
  texts = [
    _texts(example, pool.captions(number), names)
    for example, number in zip(examples, numbers, strict=True)
  ]
  files = [example.image for example in examples]
  colours = pictures.components(list(model.embed_patches(files)))
  grid = model.look(Patches()).grid
  kind = _kind(model) if any(texts) else ""
  maps = _logits(model, files, texts, kind) if kind else [{} for _ in files]
  rows = []
  for number, own, colour, logits in zip(
    numbers, texts, colours, maps, strict=True
  ):
    shown = _enlarged(pool.thumbnails[number])
    cells = np.arange(colour.size // 3).reshape(colour.shape[:2])
    at = grid.to_nearest(cells, *shown.shape[:2])  # Of each pixel, its patch.
    painted = colour.reshape(-1, 3)[at]
    rows.append(
      Seen(
        thumbnails.picture(shown, ", ".join(own) or "an image"),
        thumbnails.picture(painted, "its patches as colours"),
        [_map(model, text, v, shown, at) for text, v in logits.items()],
      )
    )
  size = f"{grid.side} x {grid.side}"
  if grid.length is not None:
    size = f"up to {grid.length}"
  return Row(size, kind, rows)


def _kind(model: Model) -> str:
  """Returns which patches texts can be compared with; "" for none."""
  for kind in KINDS if has_text_tower(model.config.model) else ():
    try:
      check(model.config.model.image, Patches(kind))
    except UserError:
      continue
    return kind
  return ""


def _logits(
  model: Model,
  files: Sequence[Any],
  texts: Sequence[Sequence[str]],
  kind: str,
) -> list[dict[str, np.ndarray]]:
  """Returns the logits hw of each text of each image."""
  every = list(dict.fromkeys(text for own in texts for text in own))
  vectors = model.embed_texts(every)
  grids = model.embed_patches(files, kind=kind)
  found = []
  for grid, own in zip(grids, texts, strict=True):
    rows = vectors[[every.index(text) for text in own]]
    logits = patch_logits(grid, rows, model.logit_scale, model.logit_bias)
    found.append({text: logits[..., i] for i, text in enumerate(own)})
  return found


def _map(
  model: Model, text: str, logits: np.ndarray, shown: np.ndarray, at: np.ndarray
) -> Map:
  low, high = float(logits.min()), float(logits.max())
  colours = pictures.heat(logits, low, high).reshape(-1, 3)[at]
  picture = thumbnails.picture(
    pictures.over(shown, colours, 0.7), f"where it fires: {text}"
  )
  if not model.has_trained_bias:
    return Map(text, picture, None, None)
  low, high = (float(sigmoid(np.float64(x))) for x in (low, high))
  return Map(text, picture, low, high)


class _Names(NamedTuple):
  """What masks hold, and what it is called."""

  key: str
  of_value: Mapping[int, str]


def _class_names(asked: Wanted) -> _Names | None:
  """Returns the names of the values of masks; None where there are none."""
  spec = asked.masks
  if spec is None:
    return None
  with naming_evaluation(asked.name or ""):
    classes = mask_classes(spec)
  background = spec.get("background", "background")
  names = {
    value: classes.names[number][0]
    for value, number in classes.of_value.items()
    if value not in classes.ignored and classes.names[number][0] != background
  }
  return _Names(spec.mask_key, names)


def _texts(
  example: Example, captions: Sequence[str], names: _Names | None
) -> list[str]:
  """Returns the classes that cover most of an image, or its captions."""
  if names is not None and example.fields.get(names.key) is not None:
    try:
      values = masks.decode(example.fields[names.key]).ravel()
    except images.BadImage:  # The evaluation has counted it.
      return []
    areas = Counter(values.tolist())
    found = [names.of_value.get(v) for v, _ in areas.most_common()]
    return list(dict.fromkeys(filter(None, found)))[:_TEXTS]
  return [text for text in captions if text.strip()][:1]


def _enlarged(thumbnail: np.ndarray) -> np.ndarray:
  """Returns a picture whose longer side has `_SIDE` pixels."""
  height, width = thumbnail.shape[:2]
  scale = _SIDE / max(height, width)
  size = max(round(height * scale), 1), max(round(width * scale), 1)
  if scale == 1:
    return thumbnail
  return images.resize(thumbnail, size, "nearest" if scale > 2 else "bicubic")
