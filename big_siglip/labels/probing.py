"""A linear classifier on images' embeddings, learnt from labelled images.

Shape letters: N images, E embedding width, C labels, T images that are tested.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from big_siglip import progress
from big_siglip.errors import UserError
from big_siglip.evaluators import probes, tables
from big_siglip.evaluators.result import Table
from big_siglip.labels.images import Labelled
from big_siglip.trained.classifier import Description, Head, softmax

# Of these the one that is best on images that were kept back.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_FOLDS = 5
_MANY = 10_000  # Images of which a fifth tells enough.


class Tested(NamedTuple):
  """What was said of images by classifiers that had not seen them.

  Attributes:
    images: T, their places among the images that teach.
    predicted: T, labels.
    score: T float32, how likely these were.
  """

  images: np.ndarray
  predicted: np.ndarray
  score: np.ndarray


def divide(labels: np.ndarray, count: int = _FOLDS) -> np.ndarray:
  """Returns each image's fold, N, in [0, count); each has all labels' share.

  -1 for a label's single image, which teaches and is never tested.

  Args:
    labels: N.
    count: of folds.
  """
  folds = np.full(len(labels), -1)
  for label in np.unique(labels).tolist():
    own = np.flatnonzero(labels == label)
    if len(own) > 1:
      folds[own] = np.arange(len(own)) % count
  return folds


def learn(
  images: Labelled,
  data: str,
  checkpoint: str,
  tower: dict[str, Any],
  penalties: Sequence[float] = PENALTIES,
) -> tuple[Head, Tested]:
  """Returns a logistic regression on all images, and how well it does.

  Images are tested in five parts, each by what the other four teach; of more
  than 10,000 images one part alone. A fifth of what teaches chooses the
  penalty, before all of that learns with it.

  Args:
    images: embedded, of two labels at least.
    data: what they are, in words.
    checkpoint: where their model lies.
    tower: see `classifier.describe_tower`.
    penalties: to choose from.

  Raises:
    UserError: no label has two images.
  """
  kept, labels = np.unique(images.labels, return_inverse=True)
  names = [images.names[label][0] for label in kept.tolist()]
  x, folds = images.embeddings, divide(labels)
  if not (folds >= 0).any():
    raise UserError(
      f"{data}: no label has two images; without a second one of some label "
      "nothing can be measured"
    )
  number = 1 if len(x) > _MANY else int(folds.max()) + 1
  scores = np.zeros((len(x), len(names)), np.float32)
  with progress.Progress(number + 1, "fits") as show:
    for fold in range(number):
      _, fitted = _fit(x, labels, folds != fold, len(names), penalties)
      scores[folds == fold] = fitted.scores(x[folds == fold])
      show.add(1)
    every = np.ones(len(x), bool)
    best, final = _fit(x, labels, every, len(names), penalties)
    show.add(1)
  test = np.flatnonzero((folds >= 0) & (folds < number))
  predicted = scores[test].argmax(axis=1)
  right = predicted == labels[test]
  # The standardization goes into the matrix: embeddings come as they are.
  weights = final.weights / final.scale.deviation[:, None]
  bias = final.bias - final.scale.mean @ weights
  about = Description(
    labels=names,
    checkpoint=checkpoint,
    data=data,
    images=len(x),
    l2=best,
    measured=_measure(right, labels[test]),
    **tower,
  )
  head = Head(weights.astype(np.float32), bias.astype(np.float32), about)
  likely = softmax(scores[test]).max(axis=1)
  return head, Tested(test, kept[predicted], likely)


def _measure(right: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Returns `Description.measured` of T images."""
  of_label = [right[labels == c].mean() for c in np.unique(labels)]
  hits = stats.binomtest(int(right.sum()), len(right))
  low, high = hits.proportion_ci(method="wilson")
  return {
    "accuracy": float(right.mean()),
    "low": float(low),
    "high": float(high),
    "per_class": float(np.mean(of_label)),
    "images": len(right),
  }


def rows(images: Labelled, tested: Tested) -> Table:
  """Returns a row for each image of the data set, as an evaluation's.

  One that was not tested has a label, and no prediction.

  Args:
    images: what taught.
    tested: what was said of it.
  """
  predicted = np.full(len(images.labels), -1)
  predicted[tested.images] = tested.predicted
  score: list[Any] = [None] * len(predicted)
  for place, value in zip(
    tested.images.tolist(), tables.plain(tested.score), strict=True
  ):
    score[place] = value
  names = [own[0] for own in images.names]
  table = tables.classified(
    *(images.rows, images.rows.count, images.index, names),
    predicted=predicted,
    answers=images.labels[:, None],
    right=predicted == images.labels,
    further={"probability": score},
  )
  seen = dict(zip(images.index.tolist(), predicted.tolist(), strict=True))
  for row in table["row"]:
    if row not in seen:
      table["note"][row] = _LEFT_OUT
    elif seen[row] < 0:
      table["right"][row], table["note"][row] = None, _ALONE
  return table


_LEFT_OUT = "cannot be read, or has no label"
_ALONE = "the only one of its label"


def _fit(
  x, labels, used: np.ndarray, count: int, penalties: Sequence[float]
) -> tuple[float, probes.Linear]:
  """Returns the best penalty, and what the used images teach with it."""
  best = _choose(x, labels, used, count, penalties)
  path = [penalty for penalty in penalties if penalty >= best]
  return best, probes.logistic_path(x, labels, count, path, used)[-1]


def _choose(x, labels, used, count: int, penalties: Sequence[float]) -> float:
  """Returns the best penalty on a fifth; of equal ones the strongest."""
  order = sorted(penalties, reverse=True)
  folds = np.full(len(labels), -1)
  folds[used] = divide(labels[used])
  test, learn = folds == 0, used & (folds != 0)
  if not test.any() or len(np.unique(labels[learn])) < 2:
    return order[len(order) // 2]
  path = probes.logistic_path(x, labels, count, order, learn)
  scores = [fitted.accuracy(x[test], labels[test]) for fitted in path]
  return order[int(np.argmax(scores))]
