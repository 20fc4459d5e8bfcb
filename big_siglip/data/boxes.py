"""Boxes with texts: where in an image something is, and what it is.

A box is (top, left, bottom, right) in fractions of the image, y down and x to
the right: (0, 0, 1, 1) is all of it. What data sets store `box_reading` reads.

Shape letters: n boxes of an image.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from big_siglip.errors import BadExample

# What may be wrong with a box.
PROBLEMS = (
  "no number",  # NaN, infinity, or no number at all.
  "outside the image",  # By more than `SLACK`.
  "upside down",  # Its bottom above its top, or its right left of its left.
  "no area",
  "no text",
  "no score",  # One that is no number.
  "other shape",  # Not [n, 4], or not as many texts or scores as boxes.
)
# Shares of the image's sides by which a box may reach beyond it: what detectors
# and hands overshoot, 5 pixels in 224. It is clipped.
SLACK = 0.02
# The least share of a box's area that a crop has to show, to keep the box.
MIN_VISIBLE = 0.5


class BadBoxes(BadExample):
  """The boxes of an example cannot be used.

  Attributes:
    problem: one of `PROBLEMS`.
  """

  def __init__(self, problem: str, reason: str):
    super().__init__(reason, "record")
    self.problem = problem


class Pair(NamedTuple):
  """One box, (top, left, bottom, right), and its text."""

  box: tuple[float, float, float, float]
  text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Boxes:
  """The boxes of an image.

  Attributes:
    boxes: float32 [n, 4], in [0, 1].
    texts: n of them.
    scores: float32 [n], such as a detector's; None where there are none.
  """

  boxes: np.ndarray
  texts: tuple[str, ...]
  scores: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.texts)

  def __getitem__(self, i: int) -> Pair:
    if not 0 <= i < len(self):  # What ends a `for` over them.
      raise IndexError(i)
    top, left, bottom, right = self.boxes[i].tolist()
    return Pair((top, left, bottom, right), self.texts[i])

  def at(self, places: np.ndarray) -> "Boxes":
    """Returns the boxes at some places, int [k]."""
    texts = tuple(self.texts[i] for i in places)
    scores = None if self.scores is None else self.scores[places]
    return Boxes(self.boxes[places], texts, scores)


def problems(
  boxes: np.ndarray,
  texts: Sequence[str | None],
  scores: np.ndarray | None = None,
) -> list[str]:
  """Returns what is wrong with each box, of `PROBLEMS`; "" for nothing.

  Args:
    boxes: [n, 4] in fractions.
    texts: n of them.
    scores: [n], or None.
  """
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
  finite = np.isfinite(boxes).all(axis=1)
  outside = ((boxes < -SLACK) | (boxes > 1 + SLACK)).any(axis=1)
  turned = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
  inside = boxes.clip(0, 1)
  empty = ~(inside[:, 2:] > inside[:, :2]).all(axis=1)
  silent = np.array([not (text and text.strip()) for text in texts], bool)
  unscored = ~np.isfinite(
    scores if scores is not None else np.zeros(len(boxes))
  )
  # The first that holds is told.
  checks = (~finite, outside, turned, empty, silent, unscored)
  found = np.select(checks, PROBLEMS[: len(checks)], "")
  return found.tolist()


def transform(
  found: Boxes,
  box: tuple[float, float, float, float] | None,
  mirrored: bool,
  height: int = 1,
  width: int = 1,
  min_visible: float = MIN_VISIBLE,
) -> Boxes:
  """Returns boxes in the frame of an image that was cut, mirrored and resized.

  Args:
    found: in fractions of the whole image.
    box: the part that is shown, as `views.Pixels.geometry` gives it: (left,
      top, right, bottom) in pixels; it may reach beyond the image. None: all,
      which a resize to any shape leaves as it is.
    mirrored: whether left and right are exchanged after that.
    height: of the whole image in pixels, where there is a `box`.
    width: the same.
    min_visible: the least share of a box's area that has to be shown; boxes of
      which less is seen are left out, others are clipped.
  """
  if box is not None and len(found):
    left, top, right, bottom = box
    # In double precision: a share of a large image may be small.
    origin = np.array([top, left] * 2) / np.array([height, width] * 2)
    side = np.array([bottom - top, right - left] * 2)
    side = side / np.array([height, width] * 2)
    moved = (found.boxes.astype(np.float64) - origin) / side
    shown = moved.clip(0, 1)
    # A border of rounding is no loss: a box that fills the image stays.
    share = _areas(shown) / _areas(moved)
    found = Boxes(shown.astype(np.float32), found.texts, found.scores)
    found = found.at(np.flatnonzero(share >= min_visible))
  if mirrored:
    top, left, bottom, right = found.boxes.T
    turned = np.stack([top, 1 - right, bottom, 1 - left], axis=1)
    found = Boxes(turned, found.texts, found.scores)
  return found


def choose(rng: np.random.Generator, found: Boxes) -> tuple[Pair, Pair] | None:
  """Draws two pairs, each out of all of them; None where there are none.

  One is for the box of a text, one for the text of a box: LocCa
  (arXiv:2403.19596, section 3) draws one of each for an example. The generator
  moves on alike whatever there is.
  """
  first, second = rng.random(2)
  if not len(found):
    return None
  return found[int(first * len(found))], found[int(second * len(found))]


def _areas(boxes: np.ndarray) -> np.ndarray:
  return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
