"""Zero-shot classification: which class's prompts lie closest to an image.

Shape letters: N images, C classes, D embedding width, A right classes an image.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from big_siglip.errors import UserError
from big_siglip.evaluators import tables
from big_siglip.evaluators.embed import Embedders, Rows
from big_siglip.evaluators.result import counted, Result, Table
from big_siglip.evaluators.scores import classified, Score

_MATRIX_CLASSES = 100  # A confusion matrix of more could not be looked at.
_CONFUSED = 50  # Pairs of classes that the details list.


class Predictions(NamedTuple):
  """What the classifier said of each image that could be read.

  Attributes:
    index: N, the image's number in its source.
    nearest: what lies nearest, and where the right classes stand.
    answers: NA, the right classes, padded with -1; of an image that is left
      out, -1 alone.
    nonfinite: how many embeddings of images and prompts are not finite.
  """

  index: np.ndarray
  nearest: "Nearest"
  answers: np.ndarray
  nonfinite: int = 0

  @property
  def predicted(self) -> np.ndarray:
    """N, the nearest class."""
    return self.nearest.predicted

  @property
  def label(self) -> np.ndarray:
    """N, the first right class."""
    return self.answers[:, 0]

  @property
  def right(self) -> np.ndarray:
    """N bool: whether the nearest class is a right one."""
    return self.nearest.rank == 1

  @property
  def known(self) -> np.ndarray:
    """N bool: whether the image has a class."""
    return (self.answers >= 0).any(axis=1)

  def of(self, images: np.ndarray) -> "Predictions":
    """Returns those of some of the images, N bool."""
    nearest = Nearest(*(values[images] for values in self.nearest))
    return Predictions(
      self.index[images], nearest, self.answers[images], self.nonfinite
    )


class Nearest(NamedTuple):
  """Which class lies nearest to each image, and where the right ones stand.

  Attributes:
    predicted: N, the nearest class; -1 where the embedding is not finite.
    score: N float32, its cosine; NaN where there is none.
    rank: N, the place of the best right class, from 1 on; infinite where the
      image has none, or it is not finite.
    right_score: N float32, its cosine; NaN where there is none.
  """

  predicted: np.ndarray
  score: np.ndarray
  rank: np.ndarray
  right_score: np.ndarray


@dataclasses.dataclass(frozen=True)
class ZeroShotClassification:
  """Accuracy of the nearest class, by the mean embedding of its prompts.

  Attributes:
    images: padded batches with "image", "answers" [b, A], "index" and "mask".
    prompts: padded batches with "text", "index" and "mask".
    prompt_classes: the class of each prompt.
    num_images: how many there are, with those that cannot be read.
    names: what to call each class.
    template: one of the prompts' templates, to show.
    embedders: embed images and texts.
  """

  images: Rows
  prompts: Rows
  prompt_classes: np.ndarray
  num_images: int
  names: tuple[str, ...]
  template: str
  embedders: Embedders

  def __call__(self, params: Any) -> Result:
    """Returns accuracies in [0, 1], and how many images were not counted.

    "accuracy": the share of images whose nearest class is a right one (any of
    several); "top5": that of images with a right one among the nearest five;
    "per_class": the mean over classes of the share of their images that are
    right; "skipped": images that are none; "left_out": images without a class;
    "nonfinite": embeddings that are not finite, if there are any. Such an image
    is not right, and a class of such a prompt is none's.

    Raises:
      UserError: no image has a class.
    """
    everything = self.predict(params)
    seen = everything.of(everything.known)
    if not len(seen.index):
      raise UserError(
        "config.evals: no image has a label of classes_file or answers_file"
      )
    scores = classified(seen.right, seen.nearest.rank, seen.answers)
    metrics = {
      **{name: score.mean() for name, score in scores.items()},
      "skipped": float(self.num_images - len(everything.index)),
      "left_out": float(len(everything.index) - len(seen.index)),
      **counted(everything.nonfinite),
    }
    scale_bias = self.embedders.logits(params)
    return Result(
      metrics,
      self._details(seen, scores["per_class"]),
      images=len(seen.index),
      scores=scores,
      rows=functools.partial(self._rows, everything, scale_bias),
    )

  def predict(self, params: Any) -> Predictions:
    """Returns what it says of every image, in order; alike in each process."""
    text, of_text = self.prompts.embed(self.embedders.text, params)
    image, values = self.images.embed(
      self.embedders.image, params, labels=("answers",)
    )
    classes = classifier(text, self.prompt_classes, len(self.names))
    nearest = nearest_classes(image, classes, values["answers"])
    nonfinite = sum(int((~v["finite"]).sum()) for v in (values, of_text))
    return Predictions(values["index"], nearest, values["answers"], nonfinite)

  def _rows(self, said: Predictions, logits: tuple[float, float]) -> Table:
    """Returns a row for each image of the data set."""
    nearest = said.nearest
    further = {"score": tables.plain(nearest.score)}
    scale, bias = logits
    if self.embedders.sigmoid and bias:
      logit = np.float32(scale) * nearest.score + np.float32(bias)
      further["probability"] = tables.plain(special.expit(logit))
    further["label_rank"] = tables.places(nearest.rank)
    further["label_score"] = tables.plain(nearest.right_score)
    return tables.classified(
      *(self.images, self.num_images, said.index, self.names),
      predicted=said.predicted,
      answers=said.answers,
      right=said.right,
      further=further,
    )

  def _details(self, seen: Predictions, by_class: Score) -> dict[str, Any]:
    """Returns accuracy by class, the confusion matrix, and its worst pairs."""
    shares = by_class.means(len(self.names))
    # A right answer that is not the first one is no confusion.
    truth = np.where(seen.right, seen.predicted, seen.label)
    finite = seen.predicted >= 0
    pairs, counts = np.unique(
      np.stack([truth[finite], seen.predicted[finite]], 1),
      axis=0,
      return_counts=True,
    )
    wrong = pairs[:, 0] != pairs[:, 1]
    order = np.argsort(-counts[wrong], kind="stable")[:_CONFUSED]
    details = {
      "classes": list(self.names),
      "class_accuracy": [None if np.isnan(s) else float(s) for s in shares],
      "confused": [
        [self.names[a], self.names[b], int(count)]
        for (a, b), count in zip(
          pairs[wrong][order], counts[wrong][order], strict=True
        )
      ],
    }
    if len(self.names) <= _MATRIX_CLASSES:
      matrix = np.zeros((len(self.names),) * 2, int)
      matrix[pairs[:, 0], pairs[:, 1]] = counts
      details["confusion"] = matrix.tolist()  # [right class][predicted class]
    return details


def classifier(
  text_embeddings: np.ndarray, prompt_classes: np.ndarray, num_classes: int
) -> np.ndarray:
  """Returns the CD unit vectors of the classes from those of their prompts.

  Each is the mean of the prompts' unit vectors, made a unit vector again, as in
  CLIP (arXiv:2103.00020, section 3.1.4).

  Args:
    text_embeddings: one row a prompt.
    prompt_classes: the class of each prompt, in [0, C); no class without one.
    num_classes: C.
  """
  units = _unit(text_embeddings.astype(np.float32))
  sums = np.zeros((num_classes, units.shape[1]))
  np.add.at(sums, prompt_classes, units)
  return _unit(sums).astype(np.float32)


def nearest_classes(
  image_embeddings: np.ndarray, classes: np.ndarray, answers: np.ndarray
) -> Nearest:
  """Returns the class of largest cosine of each image.

  A class whose vector is not finite is the nearest of none. Of equal ones the
  class of the lower number comes first, as with argmax.

  Args:
    image_embeddings: ND.
    classes: CD unit vectors.
    answers: NA, the right classes, padded with -1.
  """
  rows = 2**24 // len(classes) + 1
  parts = [
    _nearest(_unit(image_embeddings[i : i + rows]) @ classes.T, right)
    for i in range(0, len(image_embeddings), rows)
    for right in [answers[i : i + rows]]
  ]
  return Nearest(*map(np.concatenate, zip(*parts, strict=True)))


def _nearest(cosines: np.ndarray, answers: np.ndarray) -> Nearest:
  cosines = np.where(np.isfinite(cosines), cosines, -np.inf)
  predicted = cosines.argmax(axis=1)
  rank = np.full(len(cosines), np.inf)
  best = np.full(len(cosines), -np.inf, np.float32)
  numbers = np.arange(cosines.shape[1])
  for column in answers.T:
    own = np.take_along_axis(cosines, column[:, None], axis=1)
    before = (cosines > own) | ((cosines == own) & (numbers < column[:, None]))
    there = (column >= 0) & np.isfinite(own[:, 0])
    rank = np.where(there, np.minimum(rank, 1 + before.sum(axis=1)), rank)
    best = np.where(there, np.maximum(best, own[:, 0]), best)
  score = np.take_along_axis(cosines, predicted[:, None], axis=1)[:, 0]
  return Nearest(
    predicted=np.where(np.isfinite(score), predicted, -1),
    score=np.where(np.isfinite(score), score, np.nan),
    rank=rank,
    right_score=np.where(np.isfinite(best), best, np.nan),
  )


def _unit(vectors: np.ndarray) -> np.ndarray:
  """Divides by the length along the last axis."""
  length = np.linalg.norm(vectors, axis=-1, keepdims=True)
  with np.errstate(invalid="ignore"):  # Of infinities.
    return vectors / np.maximum(length, 1e-8)
