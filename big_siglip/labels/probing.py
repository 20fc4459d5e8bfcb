"""A linear classifier on images' embeddings, learnt from labelled images.

Shape letters: N images, E embedding width, C labels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from big_siglip.errors import UserError
from big_siglip.evaluators import probes
from big_siglip.labels.images import Labelled
from big_siglip.trained.classifier import Description, Head

# Of these the one that is best on images that were kept back.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_TESTED = 5  # Of a label's images every fifth is held out.


class Parts(NamedTuple):
  """Which images teach, and which measure.

  Attributes:
    learn: N bool.
    test: N bool.
    alone: labels of a single image, which teaches and measures nothing.
  """

  learn: np.ndarray
  test: np.ndarray
  alone: list[int]


def divide(labels: np.ndarray, every: int = _TESTED) -> Parts:
  """Holds out every fifth image of each label, and one of two to four.

  Args:
    labels: N.
    every: the last of so many is held out.
  """
  test = np.zeros(len(labels), bool)
  alone = []
  for label in np.unique(labels).tolist():
    own = np.flatnonzero(labels == label)
    held_out = own[every - 1 :: every] if len(own) >= every else own[1:][-1:]
    test[held_out] = True
    if len(own) == 1:
      alone.append(label)
  return Parts(~test, test, alone)


def learn(
  images: Labelled,
  data: str,
  checkpoint: str,
  tower: dict[str, Any],
  penalties: Sequence[float] = PENALTIES,
) -> Head:
  """Returns a logistic regression on all images, and how well it does.

  Of the images that are not held out a fifth chooses the penalty. With it all
  of these learn, and the held-out ones measure; then all of them learn.

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
  x, parts = images.embeddings, divide(labels)
  if not parts.test.any():
    raise UserError(
      f"{data}: no label has two images; without a second one of some label "
      "nothing can be measured"
    )
  best = _choose(x[parts.learn], labels[parts.learn], len(names), penalties)
  path = [penalty for penalty in penalties if penalty >= best]
  fitted = _fit(x[parts.learn], labels[parts.learn], len(names), path)
  right = fitted.scores(x[parts.test]).argmax(axis=1) == labels[parts.test]
  tested = labels[parts.test]
  of_label = [right[tested == c].mean() for c in np.unique(tested)]
  final = _fit(x, labels, len(names), path)
  # The standardization goes into the matrix: embeddings come as they are.
  weights = final.weights / final.scale.deviation[:, None]
  bias = final.bias - final.scale.mean @ weights
  about = Description(
    labels=names,
    checkpoint=checkpoint,
    data=data,
    images=len(x),
    l2=best,
    measured={
      "accuracy": float(right.mean()),
      "per_class": float(np.mean(of_label)),
      "images": int(parts.test.sum()),
    },
    **tower,
  )
  return Head(weights.astype(np.float32), bias.astype(np.float32), about)


def _choose(x, labels, count: int, penalties: Sequence[float]) -> float:
  """Returns the best penalty on a fifth; of equal ones the strongest."""
  order = sorted(penalties, reverse=True)
  parts = divide(labels)
  if not parts.test.any() or len(np.unique(labels[parts.learn])) < 2:
    return order[len(order) // 2]
  path = probes.logistic_path(x[parts.learn], labels[parts.learn], count, order)
  scores = [
    fitted.accuracy(x[parts.test], labels[parts.test]) for fitted in path
  ]
  return order[int(np.argmax(scores))]


def _fit(x, labels, count: int, penalties) -> probes.Linear:
  return probes.logistic_path(x, labels, count, penalties)[-1]
