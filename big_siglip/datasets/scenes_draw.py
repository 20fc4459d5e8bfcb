"""What a scene of `scenes` is: how it is drawn by lot, said and painted.

A scene holds one group of shapes at a place ("two big red stars at the top")
or two groups and their relation ("a tiny blue cross left of three big white
circles"). A group is one to three equal shapes in a row or a column.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from big_siglip.datasets import scenes_shapes

SIDE = 64  # Pixels, the height and the width of a scene.
_OVERSAMPLING = 4  # Drawn larger and shrunk, for smooth edges.

# No two descriptions make a caption of more than 63 bytes: with its EOS it
# fits SigLIP's 64 tokens even when every byte is a token.
COUNTS = {"a": 1, "two": 2, "three": 3}
SIZES = {"tiny": 5.5, "big": 9.0}  # Radius in pixels.
COLOURS = {
  "red": (225, 35, 35),
  "green": (30, 175, 60),
  "blue": (45, 95, 235),
  "yellow": (250, 215, 40),
  "white": (235, 235, 235),
  "pink": (250, 105, 205),
}
PLURALS = {
  "circle": "circles",
  "square": "squares",
  "triangle": "triangles",
  "star": "stars",
  "cross": "crosses",
}
# Where the middle of a lone group lies, and whether it is a row.
PLACES = {
  "at the top": (32, 13, True),
  "at the bottom": (32, 51, True),
  "on the left": (13, 32, False),
  "on the right": (51, 32, False),
  "in the middle": (32, 32, True),
}
OPPOSITES = {
  "left of": "right of",
  "right of": "left of",
  "above": "below",
  "below": "above",
}
# What a mask holds at a pixel of a shape; 0 is none. Colours count slower.
MASK_VALUES = {
  (colour, shape): 1 + len(PLURALS) * i + j
  for i, colour in enumerate(COLOURS)
  for j, shape in enumerate(PLURALS)
}
_LONE_SHARE = 0.1  # Of all scenes; they have few captions to choose from.


@dataclasses.dataclass(frozen=True)
class Group:
  """Equal shapes, by the words that describe them."""

  count: str
  size: str
  colour: str
  shape: str

  def __str__(self) -> str:
    noun = self.shape if self.count == "a" else PLURALS[self.shape]
    return f"{self.count} {self.size} {self.colour} {noun}"


@dataclasses.dataclass(frozen=True)
class Scene:
  """One group and its place, or two groups and how the first lies.

  Attributes:
    groups: one or two.
    where: a key of `PLACES` for one group, of `OPPOSITES` for two.
  """

  groups: tuple[Group, ...]
  where: str

  @property
  def caption(self) -> str:
    """All there is to say: every word of it can be told from the image."""
    first, *rest = map(str, self.groups)
    return " ".join([first, self.where, *rest])

  @property
  def meaning(self) -> str:
    """Equal for the two captions that say the same the other way round."""
    if self.where in ("right of", "below"):
      return self.turned.caption
    return self.caption

  @property
  def turned(self) -> "Scene":
    """The same scene, said the other way round; a lone group has no other."""
    if len(self.groups) == 1:
      return self
    return Scene(self.groups[::-1], OPPOSITES[self.where])

  @property
  def is_test(self) -> bool:
    """Whether scenes of this meaning are kept for the test split: a tenth."""
    digest = hashlib.sha256(self.meaning.encode()).digest()
    return digest[0] < 26


class Placed(NamedTuple):
  """Where a group lies.

  Attributes:
    group: what lies there.
    middle: (x, y) in pixels.
    is_row: whether its shapes stand side by side, not one above the other.
    low: where the room that it has along its own direction begins, in pixels.
    high: where it ends.
  """

  group: Group
  middle: tuple[float, float]
  is_row: bool
  low: float = 0
  high: float = SIDE


class Painted(NamedTuple):
  """A scene as it is seen, and what is true of it.

  Attributes:
    image: PNG, 64x64 RGB; of `scenes_wide` it has other sizes, as the mask.
    caption: all there is to say.
    phrasings: of the caption: it, and what says the same the other way round.
    mask: PNG, 64x64 of one channel: `MASK_VALUES` of the shape whose outline
      the middle of a pixel lies in, 0 for none; drawn at this size, not shrunk.
    boxes: one for each group, (top, left, bottom, right) in [0, 1].
    box_texts: what each group is, such as "two big red stars".
  """

  image: bytes
  caption: str
  phrasings: tuple[str, ...]
  mask: bytes
  boxes: tuple[tuple[float, float, float, float], ...]
  box_texts: tuple[str, ...]


def train_example(index: int) -> Painted:
  """Returns the scene number `index`, which depends on nothing else."""
  rng = np.random.default_rng([0, index])
  scene = draw_lot(rng)
  while scene.is_test:
    scene = draw_lot(rng)
  return paint(scene, rng)


def test_examples(count: int) -> Iterator[Painted]:
  """Yields scenes, no two of which mean the same.

  None means the same as any training example either.
  """
  seen = set()
  for index in range(count):
    rng = np.random.default_rng([1, index])
    scene = draw_lot(rng)
    while not scene.is_test or scene.meaning in seen:
      scene = draw_lot(rng)
    seen.add(scene.meaning)
    yield paint(scene, rng)


def place(scene: Scene, rng: np.random.Generator) -> list[Placed]:
  """Returns where the groups of a scene of 64x64 pixels lie."""
  if len(scene.groups) == 1:
    x, y, is_row = PLACES[scene.where]
    jitter = rng.uniform(-3, 3, 2)
    return [Placed(scene.groups[0], (x + jitter[0], y + jitter[1]), is_row)]
  first, second = scene.groups
  if scene.where in ("right of", "below"):
    first, second = second, first
  is_row = scene.where in ("above", "below")
  # Groups stay side by side: an oblique pair would be both left and above.
  along = SIDE / 2 + rng.uniform(-6, 6)
  placed = []
  for group, across in ((first, SIDE / 4), (second, SIDE * 3 / 4)):
    u = along + rng.uniform(-3, 3)
    v = across + rng.uniform(-4, 4)
    placed.append(Placed(group, (u, v) if is_row else (v, u), is_row))
  return placed


def paint(
  scene: Scene,
  rng: np.random.Generator,
  size: tuple[int, int] = (SIDE, SIDE),
  placing: Callable[[Scene, np.random.Generator], list[Placed]] = place,
) -> Painted:
  """Paints a scene.

  Args:
    scene: what is to be seen.
    rng: shifts, tints and sizes it a bit.
    size: of the image, (width, height) in pixels.
    placing: says where its groups lie.
  """
  grey = int(rng.integers(10, 55))
  width, height = size
  large = width * _OVERSAMPLING, height * _OVERSAMPLING
  image = Image.new("RGB", large, (grey, grey, grey))
  draw = ImageDraw.Draw(image)
  mask = np.zeros((height, width), np.uint8)
  boxes, texts = [], []
  for placed in placing(scene, rng):
    group = placed.group
    outlines = _paint_group(draw, placed, rng)
    for outline in outlines:
      scenes_shapes.fill(mask, outline, MASK_VALUES[group.colour, group.shape])
    x, y = np.clip(np.concatenate(outlines) / size, 0, 1).T
    boxes.append(tuple(map(float, (y.min(), x.min(), y.max(), x.max()))))
    texts.append(str(group))
  return Painted(
    _png(image.reduce(_OVERSAMPLING)),
    scene.caption,
    tuple(dict.fromkeys((scene.caption, scene.turned.caption))),
    _png(Image.fromarray(mask)),
    tuple(boxes),
    tuple(texts),
  )


def _png(image: Image.Image) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, "png", compress_level=1)  # Small images, and many.
  return buffer.getvalue()


def draw_lot(rng: np.random.Generator) -> Scene:
  """Returns a scene, of one group or two."""
  if rng.random() < _LONE_SHARE:
    return Scene((_draw_group(rng),), _pick(rng, PLACES))
  first, second = _draw_group(rng), _draw_group(rng)
  # Groups of one kind would read as one larger group.
  while _kind(first) == _kind(second):
    second = _draw_group(rng)
  return Scene((first, second), _pick(rng, OPPOSITES))


def _draw_group(rng: np.random.Generator) -> Group:
  return Group(*(_pick(rng, d) for d in (COUNTS, SIZES, COLOURS, PLURALS)))


def _pick(rng: np.random.Generator, words: dict) -> str:
  return list(words)[rng.integers(len(words))]


def _kind(group: Group) -> tuple[str, str, str]:
  return group.size, group.colour, group.shape


def _paint_group(
  draw: ImageDraw.ImageDraw, placed: Placed, rng: np.random.Generator
) -> list[np.ndarray]:
  """Returns the outline [corners, 2] of each shape, (x, y) in pixels."""
  group, middle, is_row, low, high = placed
  radius = SIZES[group.size] * rng.uniform(0.93, 1.03)
  tint = rng.integers(-15, 16, 3)
  colour = tuple(int(c) for c in np.clip(COLOURS[group.colour] + tint, 0, 255))
  count = COUNTS[group.count]
  pitch = 2 * radius + rng.uniform(1.5, 2.5)
  half = (count - 1) * pitch / 2 + radius
  # Push a long group back inside, along its own direction only.
  u, v = middle if is_row else middle[::-1]
  u = float(np.clip(u, low + half + 0.5, high - half - 0.5))
  outlines = []
  for i in range(count):
    at = u + (i - (count - 1) / 2) * pitch
    centre = (at, v) if is_row else (v, at)
    outline = scenes_shapes.outline(group.shape, radius, centre)
    draw.polygon(
      [(_OVERSAMPLING * x, _OVERSAMPLING * y) for x, y in outline], fill=colour
    )
    outlines.append(np.array(outline))
  return outlines
