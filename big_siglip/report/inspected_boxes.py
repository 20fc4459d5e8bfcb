"""The boxes of the examples that training will see first."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
import numpy as np

from big_siglip.data import order
from big_siglip.data.box_reading import Reader
from big_siglip.data.boxes import BadBoxes, Boxes, MIN_VISIBLE
from big_siglip.data.mixture import locate, Mixture
from big_siglip.data.sources import Example, Source
from big_siglip.data.views import Pixels, Sample, Streams, View
from big_siglip.data.views.boxes import seen_boxes
from big_siglip.errors import BadExample

_MOST = 8  # Boxes that are drawn on an image.
_LETTERS = 24  # Of a box's text.


@dataclasses.dataclass(frozen=True)
class LookAtBoxes:
  """What was found.

  Attributes:
    images: how many were looked at.
    with_boxes: how many of them have any.
    boxes: how many there are, of good ones.
    bad: images whose boxes cannot be used, by `boxes.PROBLEMS`.
    told: the first of them: what it is called, and why.
    seen: the boxes of the first rows, in the frame that training sees.
  """

  images: int
  with_boxes: int
  boxes: int
  bad: Mapping[str, int]
  told: tuple[tuple[str, str], ...]
  seen: tuple[Boxes | None, ...]

  def as_json(self) -> dict[str, Any]:
    """Returns the counts."""
    names = ("images", "with_boxes", "boxes")
    return {name: getattr(self, name) for name in names} | {
      "bad": dict(self.bad)
    }

  def lines(self) -> list[str]:
    """Returns the same for people."""
    bad = ", ".join(f"{problem} {n}" for problem, n in self.bad.items())
    bad = f"; cannot be used: {bad}" if bad else ""
    line = f"{self.boxes} on {self.with_boxes} of {self.images} images{bad}"
    return [
      f"boxes          {line}",
      *(f"  {n}: {why}" for n, why in self.told),
    ]


def look(
  source: Source,
  views: Sequence[View],
  config: Any,
  rows: Sequence[int],
  count: int,
) -> LookAtBoxes | None:
  """Reads boxes of the first examples that are drawn.

  Args:
    source: the examples.
    views: of the images among them.
    config: the whole config.
    rows: the numbers of the examples in the first batch.
    count: how many draws to look at.

  Returns:
    What was found; None where `config.data.fields` has no boxes, or where there
    are embeddings instead of images.
  """
  pixels = next((view for view in views if isinstance(view, Pixels)), None)
  if config.data.boxes.key not in config.data.fields or pixels is None:
    return None
  reader = Reader.of(config.data, f"its {config.data.boxes.key!r}")
  lengths, weights = (len(source),), (100,)
  if isinstance(source, Mixture):
    lengths, weights = source.lengths, source.weights
  draws = order.draws(lengths, weights, config.seed)
  bad: collections.Counter[str] = collections.Counter()
  told, numbers = [], []
  for index in dict.fromkeys(draws[i].index for i in range(count)):
    try:
      # All that are there, whatever a crop shows of them.
      seed = config.seed, 0, index
      numbers.append(len(_of(source[index], pixels, reader, seed, 0)))
    except BadBoxes as error:
      bad[error.problem] += 1
      told.append((_name(source, index), str(error)))
    except BadExample:  # Told with what is skipped.
      continue
  return LookAtBoxes(
    images=len(numbers) + bad.total(),
    with_boxes=sum(map(bool, numbers)),
    boxes=sum(numbers),
    bad=bad,
    told=tuple(told[:10]),
    seen=tuple(
      _seen(source, pixels, reader, (config.seed, draws[i].epoch, int(index)))
      for i, index in enumerate(rows)
    ),
  )


def _of(
  example: Example,
  pixels: Pixels,
  reader: Reader,
  seed: tuple[int, int, int],
  min_visible: float = MIN_VISIBLE,
) -> Boxes:
  sample = Sample.of(example, fast=True)  # Of a JPEG the header will do.
  rng = Streams([seed], pixels.name)[0]
  return seen_boxes(sample, pixels, reader, rng, min_visible)


def _seen(source, pixels, reader, seed) -> Boxes | None:
  try:
    return _of(source[seed[2]], pixels, reader, seed)
  except BadExample:
    return None


def _name(source: Source, index: int) -> str:
  try:
    return source[index].name
  except BadExample:
    return f"example {locate(source, index)[1]}"


def draw(ax: Axes, image: np.ndarray, found: Boxes | None) -> None:
  """Draws boxes and their texts on an image that is shown.

  Args:
    ax: where the image is.
    image: [H, W, 3].
    found: its boxes.
  """
  height, width = image.shape[:2]
  colours = matplotlib.colormaps["tab10"].colors
  for i, (box, text) in enumerate(list(found or ())[:_MOST]):
    top, left, bottom, right = box
    colour = colours[i % len(colours)]
    ax.add_patch(
      Rectangle(
        (left * width - 0.5, top * height - 0.5),
        (right - left) * width,
        (bottom - top) * height,
        fill=False,
        edgecolor=colour,
        linewidth=1.2,
      )
    )
    text = text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}\u2026"
    ax.text(
      *(left * width - 0.5, top * height - 0.5, text.replace("$", r"\$")),
      color="white",
      fontsize=5,
      va="bottom" if top > 0.1 else "top",
      clip_on=True,
      bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
    )
