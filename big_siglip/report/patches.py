"""What a run's patches know of a row of held-out images.

Shape letters: h x w the grid of patches, H and W pixels of a picture.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from big_siglip.data import images, masks
from big_siglip.data.sources import Example
from big_siglip.dense import pictures
from big_siglip.errors import naming_evaluation
from big_siglip.evaluators.dense import mask_classes
from big_siglip.models.patches import Patches
from big_siglip.report import maps, thumbnails
from big_siglip.report.maps import Choice, Map
from big_siglip.report.pool import Pool
from big_siglip.report.thumbnails import Picture
from big_siglip.report.wanted import Wanted
from big_siglip.trained.inference import Model

_COUNT = 6  # Images of a row.
_TEXTS = 2  # Classes of an image, at most.


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
    compared: by what patches are compared with texts; "": nothing.
    images: the same ones for each run.
  """

  grid: str
  compared: str
  images: Sequence[Seen]


def look(model: Model, pool: Pool, asked: Wanted, choice: Choice) -> Row:
  """Returns what a model's patches know of some images of a pool.

  Args:
    model: see `big_siglip.load`.
    pool: the examples.
    asked: how the run is evaluated on them.
    choice: which patches texts are compared with.

  Raises:
    UserError: the names of the classes of masks cannot be read, or the tower
      lacks what is chosen.
  """
  numbers = pool.spread(_COUNT)
  examples = [pool.source[pool.index[number]] for number in numbers]
  names = _class_names(asked)
  texts = [
    _texts(example, pool.captions(number), names)
    for example, number in zip(examples, numbers, strict=True)
  ]
  shown = [pool.thumbnails[number] for number in numbers]
  return draw(model, examples, shown, texts, choice)


def draw(
  model: Model,
  examples: Sequence[Example],
  shown: Sequence[np.ndarray],
  texts: Sequence[Sequence[str]],
  choice: Choice,
) -> Row:
  """Returns what a model's patches know of images, and of texts in them.

  Args:
    model: see `big_siglip.load`.
    examples: with the images.
    shown: uint8 [H, W, 3], a small picture of each.
    texts: what to look for in each.
    choice: which patches texts are compared with.

  Raises:
    UserError: the tower lacks what is chosen.
  """
  asked = maps.patches_of(model, choice) if any(texts) else None
  files = [example.image for example in examples]
  grids = list(model.embed_patches(files))
  found = (
    maps.logits(model, files, texts, asked) if asked else [{}] * len(files)
  )
  rows = []
  for small, own, colours, logits in zip(
    shown, texts, pictures.components(grids), found, strict=True
  ):
    large = maps.enlarged(small)
    at = maps.places(model, colours.shape[:2], large)
    painted = colours.reshape(-1, 3)[at]
    rows.append(
      Seen(
        thumbnails.picture(large, ", ".join(own) or "an image"),
        thumbnails.picture(painted, "its patches as colours"),
        [maps.draw(model, text, v, large, at) for text, v in logits.items()],
      )
    )
  grid = model.look(Patches()).grid
  size = f"{grid.side} x {grid.side}"
  if grid.length is not None:
    size = f"up to {grid.length}"
  return Row(size, maps.told(model, asked) if asked else "", rows)


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
