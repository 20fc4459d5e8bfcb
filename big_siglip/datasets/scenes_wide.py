"""What a scene of `scenes_wide` is: `scenes_draw` on canvases of mixed shapes.

Shapes are as large as those of `scenes`, on canvases of 168 x 24, 24 x 168 and
64 x 64 pixels. On a long canvas the shapes stand in one row or column, and what
lies where is said of its long side. To squash such an image to a square leaves
a tiny shape 4 of its 11 pixels along that side.
"""

from collections.abc import Iterator
import functools

import numpy as np

from big_siglip.datasets import scenes_draw
from big_siglip.datasets.scenes_draw import Painted, Placed, Scene

LONG, THICK = 168, 24  # Pixels of a long canvas.
WIDE, TALL, SQUARE = "wide", "tall", "square"
SIZES = {  # (width, height) in pixels.
  WIDE: (LONG, THICK),
  TALL: (THICK, LONG),
  SQUARE: (scenes_draw.SIDE, scenes_draw.SIDE),
}
_FIFTHS = (WIDE, WIDE, TALL, TALL, SQUARE)
_WORDS = {  # What says that a thing lies at the start, and at the end.
  WIDE: (("on the left", "left of"), ("on the right", "right of")),
  TALL: (("at the top", "above"), ("at the bottom", "below")),
}


def train_example(index: int) -> Painted:
  """Returns the scene number `index`, which depends on nothing else."""
  rng = np.random.default_rng([2, index])
  canvas = _FIFTHS[rng.integers(len(_FIFTHS))]
  scene = _draw_lot(canvas, rng)
  while scene.is_test:
    scene = _draw_lot(canvas, rng)
  return _paint(canvas, scene, rng)


def test_examples(count: int) -> Iterator[Painted]:
  """Yields scenes, no two of which mean the same.

  None means the same as any training example either. Two fifths are wide, the
  next two tall, and the last one square.
  """
  seen = set()
  for index in range(count):
    rng = np.random.default_rng([3, index])
    canvas = _FIFTHS[index * len(_FIFTHS) // count]
    scene = _draw_lot(canvas, rng)
    while not scene.is_test or scene.meaning in seen:
      scene = _draw_lot(canvas, rng)
    seen.add(scene.meaning)
    yield _paint(canvas, scene, rng)


def _draw_lot(canvas: str, rng: np.random.Generator) -> Scene:
  scene = scenes_draw.draw_lot(rng)
  while not _fits(canvas, scene):
    scene = scenes_draw.draw_lot(rng)
  return scene


def _fits(canvas: str, scene: Scene) -> bool:
  if canvas == SQUARE or scene.where == "in the middle":
    return True
  return any(scene.where in words for words in _WORDS[canvas])


def _paint(canvas: str, scene: Scene, rng: np.random.Generator) -> Painted:
  placing = scenes_draw.place
  if canvas != SQUARE:
    placing = functools.partial(_place, canvas)
  return scenes_draw.paint(scene, rng, SIZES[canvas], placing)


def _place(canvas: str, scene: Scene, rng: np.random.Generator) -> list[Placed]:
  """Returns where the groups lie on a long canvas: in halves of their own."""
  _, ends = _WORDS[canvas]
  groups = scene.groups
  if len(groups) == 2 and scene.where in ends:
    groups = groups[::-1]
  half = LONG / 2
  if len(groups) == 2:
    rooms = [(0, half), (half, LONG)]
  elif scene.where == "in the middle":
    rooms = [(half / 2, half * 3 / 2)]
  else:
    rooms = [(half, LONG) if scene.where in ends else (0, half)]
  placed = []
  for group, (low, high) in zip(groups, rooms, strict=True):
    u = rng.uniform(low, high)
    v = THICK / 2 + rng.uniform(-2, 2)
    is_row = canvas == WIDE
    middle = (u, v) if is_row else (v, u)
    placed.append(Placed(group, middle, is_row, low, high))
  return placed
