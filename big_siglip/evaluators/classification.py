"""Zero-shot classification: which class's prompts lie closest to an image.

Shape letters: N images, C classes, D embedding width, A right classes an image.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from big_siglip.errors import UserError
from big_siglip.evaluators.embed import Embedders, Rows
from big_siglip.evaluators.result import counted, Result

_TOP = 5
_MATRIX_CLASSES = 100  # A confusion matrix of more could not be looked at.
_CONFUSED = 50  # Pairs of classes that the details list.


class Predictions(NamedTuple):
  """What the classifier said of each image that could be read.

  Attributes:
    index: N, the image's number in its source.
    ranked: NK, the K nearest classes, nearest first; K is 5, or C if less. -1
      where the embedding is not finite.
    answers: NA, the right classes, padded with -1; of an image that is left
      out, -1 alone.
    nonfinite: how many embeddings of images and prompts are not finite.
  """

  index: np.ndarray
  ranked: np.ndarray
  answers: np.ndarray
  nonfinite: int = 0

  @property
  def predicted(self) -> np.ndarray:
    """N, the nearest class."""
    return self.ranked[:, 0]

  @property
  def label(self) -> np.ndarray:
    """N, the first right class."""
    return self.answers[:, 0]

  @property
  def right(self) -> np.ndarray:
    """N bool: whether the nearest class is a right one."""
    return _hits(self.ranked[:, :1], self.answers)


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
    known = (everything.answers >= 0).any(axis=1)
    if not known.any():
      raise UserError(
        "config.evals: no image has a label of classes_file or answers_file"
      )
    seen = Predictions(*(values[known] for values in everything[:3]))
    shares = per_class(seen.right, seen.answers, len(self.names))
    metrics = {
      "accuracy": float(np.mean(seen.right)),
      "top5": float(np.mean(_hits(seen.ranked, seen.answers))),
      "per_class": float(np.nanmean(shares)),
      "skipped": float(self.num_images - len(known)),
      "left_out": float(np.sum(~known)),
      **counted(everything.nonfinite),
    }
    return Result(metrics, self._details(seen, shares))

  def predict(self, params: Any) -> Predictions:
    """Returns what it says of every image, in order; alike in each process."""
    text, of_text = self.prompts.embed(self.embedders.text, params)
    image, values = self.images.embed(
      self.embedders.image, params, labels=("answers",)
    )
    classes = classifier(text, self.prompt_classes, len(self.names))
    ranked = nearest_classes(image, classes, _TOP)
    nonfinite = sum(int((~v["finite"]).sum()) for v in (values, of_text))
    return Predictions(values["index"], ranked, values["answers"], nonfinite)

  def _details(self, seen: Predictions, shares: np.ndarray) -> dict[str, Any]:
    """Returns accuracy by class, the confusion matrix, and its worst pairs."""
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
  image_embeddings: np.ndarray, classes: np.ndarray, top: int
) -> np.ndarray:
  """Returns NK classes of largest cosine, -1 where that is not a number.

  A class whose vector is not finite is the nearest of none. Of equal ones the
  class of the lower number comes first, as with argmax.

  Args:
    image_embeddings: ND.
    classes: CD unit vectors.
    top: K; all classes if there are fewer.
  """
  rows = 2**24 // len(classes) + 1
  return np.concatenate(
    [
      _nearest(_unit(image_embeddings[i : i + rows]) @ classes.T, top)
      for i in range(0, len(image_embeddings), rows)
    ]
  )


def _nearest(cosines: np.ndarray, top: int) -> np.ndarray:
  cosines = np.where(np.isfinite(cosines), cosines, -np.inf)
  order = np.argsort(-cosines, axis=1, kind="stable")[:, :top]
  known = np.isfinite(np.take_along_axis(cosines, order, axis=1))
  return np.where(known, order, -1)


def per_class(
  right: np.ndarray, answers: np.ndarray, num_classes: int
) -> np.ndarray:
  """Returns C shares of right images; NaN for a class without images.

  Args:
    right: N bool.
    answers: NA classes, padded with -1; an image counts for each of its own.
    num_classes: C.
  """
  image, column = np.nonzero(answers >= 0)
  classes = answers[image, column]
  counts = np.bincount(classes, minlength=num_classes)
  hits = np.bincount(classes, weights=right[image], minlength=num_classes)
  with np.errstate(invalid="ignore"):
    return hits / counts


def _hits(ranked: np.ndarray, answers: np.ndarray) -> np.ndarray:
  """Returns N bool: whether a right class is among the ranked ones."""
  equal = ranked[:, :, None] == answers[:, None, :]
  return (equal & (answers >= 0)[:, None, :]).any(axis=(1, 2))


def _unit(vectors: np.ndarray) -> np.ndarray:
  """Divides by the length along the last axis."""
  length = np.linalg.norm(vectors, axis=-1, keepdims=True)
  with np.errstate(invalid="ignore"):  # Of infinities.
    return vectors / np.maximum(length, 1e-8)
