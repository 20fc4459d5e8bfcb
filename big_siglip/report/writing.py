"""What a run's decoder writes of some held-out images: captions, and boxes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from big_siglip import training_data
from big_siglip.data.box_reading import Reader
from big_siglip.data.sources import Example
from big_siglip.data.views import Pixels
from big_siglip.errors import naming_evaluation
from big_siglip.evaluators import caption_metrics
from big_siglip.evaluators.caption_tokens import tokenize
from big_siglip.evaluators.grounding import IOU, read_regions, Region
from big_siglip.evaluators.scribe import find_decoder
from big_siglip.report import maps, patches, thumbnails, wanted
from big_siglip.report.pool import Part, Pool
from big_siglip.report.runs import Run
from big_siglip.report.tables import value_text
from big_siglip.report.thumbnails import Picture
from big_siglip.report.wanted import Wanted
from big_siglip.trained.inference import Model

_COUNT = 8  # Images of a run.
_PHRASES = 3  # Of an image, at most.
# What is asked for first, of an evaluation of each kind.
_FIGURES = (
  ("caption", "exact_match", "captions right, word for word"),
  ("grounding", f"accuracy@{IOU}", f"boxes right, IoU from {IOU} on"),
  ("grounding", "text_exact_match", "texts of boxes right"),
  ("retrieval", "image_to_text/recall@1", "recall@1, image to text"),
)

Box = tuple[float, float, float, float]  # y1, x1, y2, x2: shares of the image.


class Phrase(NamedTuple):
  """A text, and where it is.

  Attributes:
    text: the text.
    box: that was written; None: there is none.
    true: the nearest true box of this text.
    iou: of both; 0 without a box.
    right: whether it is `grounding.IOU` at least.
  """

  text: str
  box: Box | None
  true: Box
  iou: float
  right: bool


class Told(NamedTuple):
  """One image.

  Attributes:
    captions: the true ones.
    written: by the decoder.
    right: whether that is one of them, word for word.
    framed: what the model sees of the image, the frame of the boxes.
    phrases: whose boxes were asked for.
    seen: the image and its patches.
  """

  captions: Sequence[str]
  written: str
  right: bool
  framed: Picture
  phrases: Sequence[Phrase]
  seen: patches.Seen


class Row(NamedTuple):
  """What one run says.

  Attributes:
    grid: see `patches.Row`.
    compared: as well.
    images: the same ones for each run.
  """

  grid: str
  compared: str
  images: Sequence[Told]

  @property
  def right(self) -> int:
    """How many captions are right."""
    return sum(one.right for one in self.images)


def writes(run: Run) -> bool:
  """Returns whether a run trains a decoder."""
  return find_decoder(ConfigDict(run.config)) is not None


def figures(run: Run) -> list[tuple[str, str]]:
  """Returns (what it is, the last value) of what is asked for first."""
  found = []
  for kind, metric, label in _FIGURES:
    for name, spec in run.config.get("evals", {}).items():
      value = run.last(f"evals/{name}/{metric}")
      if spec.get("kind") == kind and value is not None:
        found.append((label, value_text(metric, value)))
  return found


def look(
  model: Model,
  pool: Pool,
  asked: Wanted,
  choice: maps.Choice,
  config: Mapping[str, Any],
) -> Row:
  """Returns what a model's decoder writes of some images of a pool.

  Args:
    model: with a decoder.
    pool: the examples.
    asked: how the run is evaluated on them; of its boxes phrases are taken.
    choice: which patches these are compared with.
    config: of the run.

  Raises:
    UserError: the decoder or the boxes cannot be read.
  """
  numbers = pool.spread(_COUNT)
  examples = [pool.source[pool.index[number]] for number in numbers]
  files = [example.image for example in examples]
  captions = [pool.captions(number) for number in numbers]
  rows = [pool.index[number] for number in numbers]
  own = ConfigDict(dict(config))
  true = _references(rows, examples, captions, asked.captions, own)
  written = model.caption(files)
  exact = caption_metrics.exact(
    [tokenize(text) for text in written],
    [[tokenize(text) for text in texts] for texts in true],
  )
  pixels = Pixels(**vars(model.preprocess.value.square()))
  regions = _regions(rows, examples, pixels, asked.boxes, own)
  phrases = _phrases(model, files, regions)
  texts = [
    [phrase.text for phrase in found] or list(said[:1])
    for found, said in zip(phrases, captions, strict=True)
  ]
  shown = [pool.thumbnails[number] for number in numbers]
  seen = patches.draw(model, examples, shown, texts, choice)
  images = []
  for number, image in enumerate(seen.images):
    framed = image.picture
    if not pixels.is_whole:
      square = maps.enlarged(model.prepare_image(files[number]))
      framed = thumbnails.picture(square, "what the model sees of it")
    images.append(
      Told(
        true[number],
        written[number],
        bool(exact[number]),
        framed,
        phrases[number],
        image,
      )
    )
  return Row(seen.grid, seen.compared, images)


def _references(
  rows: Sequence[int],
  examples: Sequence[Example],
  captions: Sequence[Sequence[str]],
  name: str | None,
  config: ConfigDict,
) -> Sequence[Sequence[str]]:
  """Returns the captions that are right, as the evaluation of them has it.

  Args:
    rows: numbers of the images in their data set.
    examples: the same.
    captions: of them in the pool, where there is no evaluation.
    name: of the evaluation; None: there is none.
    config: of the run.
  """
  if name is None:
    return captions
  spec = config.evals[name]
  key = wanted.DataKey.of(spec, config.get("data", {}))
  source = wanted.open_data(key, config, name)
  found = []
  for row, example, own in zip(rows, examples, captions, strict=True):
    same = source[row]
    texts = same.texts[: spec.get("max_captions")]
    found.append(texts if same.name == example.name and texts else own)
  return found


def _regions(
  rows: Sequence[int],
  examples: Sequence[Example],
  pixels: Pixels,
  name: str | None,
  config: ConfigDict,
) -> list[tuple[Region, ...]]:
  """Returns the first boxes of each image, in the frame that the model sees.

  Args:
    rows: numbers of the images in their data set.
    examples: the same.
    pixels: what the model sees.
    name: of the evaluation that says where boxes are; None: there are none.
    config: of the run.
  """
  if name is None:
    return [()] * len(rows)
  spec = config.evals[name]
  with naming_evaluation(name):
    source = training_data.evaluation_source(config, name, spec.split)
    reader = Reader(spec.box_key, spec.box_text_key, spec.box_format)
    found = read_regions(Part(source, rows), reader, pixels, _PHRASES)
  # It may count other images: those without captions, too.
  return [
    own if source[row].name == example.name else ()
    for own, row, example in zip(found, rows, examples, strict=True)
  ]


def _phrases(
  model: Model, files: Sequence[Any], regions: Sequence[Sequence[Region]]
) -> list[list[Phrase]]:
  """Returns the phrases of each image, and where they are found."""
  every = list(dict.fromkeys(r.text for own in regions for r in own))
  if not every or "aref" not in model.captioner.tasks:
    return [[] for _ in files]
  boxes = model.find_boxes(files, every)
  return [
    [
      _phrase(text, row[every.index(text)], alike)
      for text, alike in {r.text: r.alike for r in own}.items()
    ]
    for own, row in zip(regions, boxes, strict=True)
  ]


def _phrase(text: str, box: Box | None, alike: Sequence[Box]) -> Phrase:
  given = np.full(4, np.nan) if box is None else np.array(box)
  ious = caption_metrics.overlap(given, np.array(alike))
  best = int(ious.argmax())
  iou = float(ious[best])
  return Phrase(text, box, alike[best], iou, iou >= IOU)
