"""Boxes of texts, and texts of boxes, as a decoder writes them.

Shape letters: N images, R regions (a box with its text).
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from big_siglip import progress
from big_siglip.data.box_reading import Reader
from big_siglip.data.sources import Source
from big_siglip.data.views import Pixels, Sample
from big_siglip.data.views.boxes import seen_boxes
from big_siglip.errors import BadExample, UserError
from big_siglip.evaluators import caption_metrics
from big_siglip.evaluators.caption_tokens import tokenize
from big_siglip.evaluators.embed import Rows
from big_siglip.evaluators.result import Result, Table
from big_siglip.evaluators.scores import plain, Score
from big_siglip.evaluators.scribe import (
  Pass,
  passes,
  perplexity,
  Scribe,
  Search,
)

IOU = 0.5  # Of a box that is right, at least.
_CURVE = np.linspace(0.05, 0.95, 19)


class Region(NamedTuple):
  """A box that a text is of, in the frame that the model sees.

  Attributes:
    box: (top, left, bottom, right) in fractions.
    text: its text.
    alike: all boxes of the image with the same text, this one among them.
  """

  box: tuple[float, float, float, float]
  text: str
  alike: tuple[tuple[float, float, float, float], ...]


def read_regions(
  source: Source, reader: Reader, pixels: Pixels, most: int | None
) -> list[tuple[Region, ...]]:
  """Returns the regions of every image; none where it is no good example.

  Args:
    source: with the fields of boxes.
    reader: of them.
    pixels: what the model sees of an image.
    most: regions of an image, the first of them; None: all.
  """
  found: list[tuple[Region, ...]] = []
  rng = np.random.default_rng(0)  # Evaluations draw nothing.
  for index in range(len(source)):
    try:
      sample = Sample.of(source[index], fast=True)  # Of a JPEG the header.
      boxes = list(seen_boxes(sample, pixels, reader, rng))
    except BadExample as error:
      progress.say(f"evaluation leaves out number {index}: {error}")
      boxes = []
    alike: dict[str, list[Any]] = {}
    for box, text in boxes:
      alike.setdefault(text, []).append(box)
    own = (Region(b, text, tuple(alike[text])) for b, text in boxes[:most])
    found.append(tuple(own))
  return found


@dataclasses.dataclass(frozen=True)
class Grounding:
  """Boxes of texts and texts of boxes, as far as the decoder has learned them.

  Attributes:
    images: padded batches with "image", "index" and "mask".
    regions: of each image.
    whole: whether the model sees all of an image, so that boxes lie in it too.
    scribe: writes.
    search: how.
  """

  images: Rows
  regions: Sequence[tuple[Region, ...]]
  whole: bool
  scribe: Scribe
  search: Search

  def __call__(self, params: Any) -> Result:
    """Returns figures of all regions.

    Of boxes: "accuracy@0.5", the share whose box is right, "mean_iou",
    "no_box", the share of answers without one, "box_perplexity", of a token of
    the box and what stands before it, and "mean_box_accuracy@0.5", which always
    answers the mean of all boxes. Of texts: "text_exact_match", word for word,
    and "text_perplexity". Then "regions" and "skipped", which counts images.
    """
    asked = [task for task in ("aref", "gcap") if task in self.scribe.tasks]
    answers: dict[tuple[int, int], dict[str, Any]] = {}
    scored = {task: np.zeros(2) for task in asked}
    seen = 0
    for part in passes(self.images, self.scribe, params):
      seen += int(part.mask.sum())
      # All processes ask as often: they know all images of the batch.
      numbers = part.number[part.mask]
      most = max((len(self.regions[i]) for i in numbers), default=0)
      for place in range(most):
        for task in asked:
          self._ask(params, part, task, place, answers, scored[task])
    if not answers:
      raise UserError("evaluation: none of its examples can be read")
    return self._result(dict(sorted(answers.items())), scored, seen)

  def _ask(self, params, part: Pass, task: str, place: int, answers, scored):
    """Asks about one region of each image of a batch."""
    own = [self._start(task, int(number), place) for number in part.own]
    starts, rows, weights = zip(*own, strict=True)
    ids, _ = self.scribe.write(params, part.context, starts, task, self.search)
    targets = np.stack(rows)[:, None], np.stack(weights)[:, None]
    scores = self.scribe.score(params, part.context, *targets)[:, 0]
    for row in np.flatnonzero(part.mask):
      number = int(part.number[row])
      if place >= len(self.regions[number]):
        continue
      start, _, weight = self._start(task, number, place)
      written = ids[row, len(start) :].tolist()
      answer = answers.setdefault((number, place), {})
      if task == "aref":
        answer["box"] = self.scribe.writer.read_box(written)
      else:
        answer["text"] = self.scribe.writer.read_text(written)
      scored += float(scores[row]), float(weight.sum())

  def _start(
    self, task: str, number: int, place: int
  ) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Returns how an answer begins, and the right one with its weights."""
    writer = self.scribe.writer
    if place >= len(self.regions[number]):
      # Nobody looks at what is written: this image has fewer regions.
      empty = np.zeros(self.scribe.length)
      return writer.prefix(task), empty.astype(np.int32), empty
    box, text, _ = self.regions[number][place]
    row, weights = writer.write(task, text, box)
    if task == "aref":
      start = writer.start(task, text=text)
    else:
      start = writer.start(task, box=box)
    return start[: self.scribe.length - 2], row, weights

  def _result(
    self, answers, scored: dict[str, np.ndarray], seen: int
  ) -> Result:
    regions = [self.regions[number][place] for number, place in answers]
    image = np.array([number for number, _ in answers])
    metrics: dict[str, float] = {}
    scores: dict[str, Score] = {}
    columns: dict[str, list[Any]] = {}
    if "aref" in scored:
      boxes = [answer["box"] for answer in answers.values()]
      given = [box or (math.nan,) * 4 for box in boxes]
      ious = _best(given, regions)
      mean = np.mean([region.box for region in regions], axis=0)
      always = _best([mean] * len(regions), regions)
      scores |= {
        f"accuracy@{IOU}": Score(image, np.float64(ious >= IOU)),
        "mean_iou": Score(image, ious),
      }
      metrics |= {name: float(s.value.mean()) for name, s in scores.items()}
      metrics["no_box"] = float(np.mean([box is None for box in boxes]))
      metrics["box_perplexity"] = perplexity(*scored["aref"].tolist())
      metrics[f"mean_box_accuracy@{IOU}"] = float((always >= IOU).mean())
      columns |= {"found": list(map(_said, boxes)), "iou": ious.tolist()}
    if "gcap" in scored:
      texts = [answer["text"] for answer in answers.values()]
      exact = np.array(
        [
          tokenize(text) == tokenize(region.text)
          for text, region in zip(texts, regions, strict=True)
        ]
      )
      scores["text_exact_match"] = plain(exact)._replace(image=image)
      metrics["text_exact_match"] = float(exact.mean())
      metrics["text_perplexity"] = perplexity(*scored["gcap"].tolist())
      columns |= {"written": texts, "exact": exact.tolist()}
    metrics |= {
      "regions": float(len(regions)),
      "skipped": float(self.images.count - seen),
    }
    rows: Callable[[], Table] = lambda: {  # noqa: E731
      "key": [self.images.name(number) for number, _ in answers],
      "row": image.tolist(),
      "text": [region.text for region in regions],
      "box": [_said(region.box) for region in regions],
      **columns,
    }
    details: dict[str, Any] = {
      "settings": self.search._asdict(),
      "whole": self.whole,
    }
    if "mean_iou" in scores:
      shares = [
        float(np.mean(scores["mean_iou"].value >= least)) for least in _CURVE
      ]
      details["accuracy_by_iou"] = {"iou": _CURVE.tolist(), "share": shares}
    images = len(np.unique(image))
    return Result(metrics, details, images=images, scores=scores, rows=rows)


def _best(
  boxes: Sequence[Sequence[float]], regions: Sequence[Region]
) -> np.ndarray:
  """Returns the IoU of each box with the nearest one of its text, [R]."""
  return np.array(
    [
      caption_metrics.overlap(np.array(box), np.array(region.alike)).max()
      for box, region in zip(boxes, regions, strict=True)
    ]
  )


def _said(box: Sequence[float] | None) -> str | None:
  """Returns a box in a cell of a table."""
  return box and " ".join(f"{x:.4f}" for x in box)
