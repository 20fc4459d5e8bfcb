"""Intersection over union: how well predicted masks lie on the true ones.

Counts of pixels are summed over a whole data set before anything is divided, as
PASCAL VOC's and ADE20k's tools have it; a mean of each image's value would be
another number. Shape letters: N images, C classes, R resamples.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from big_siglip.data.masks import IGNORED
from big_siglip.evaluators import tables

_RESAMPLES = 1_000
_SEED = 0
_MATRIX_CLASSES = 100


class Overlap:
  """Pixels of images, counted by class.

  Attributes:
    counts: N3C int64: pixels that are of a class in both masks, in the
      predicted one, and in the true one.
    confusion: CC int64: true classes by predicted ones, of all images.
  """

  def __init__(self, images: int, classes: int):
    """Has counted nothing yet."""
    self.counts = np.zeros((images, 3, classes), np.int64)
    self.confusion = np.zeros((classes, classes), np.int64)

  def add(self, number: int, predicted: np.ndarray, true: np.ndarray) -> None:
    """Counts an image's pixels where the true mask says a class.

    Args:
      number: of the image.
      predicted: integers [H, W] in [0, C).
      true: uint8 [H, W]; `masks.IGNORED` is no class.
    """
    classes = len(self.confusion)
    known = true != IGNORED
    pairs = true[known].astype(np.int64) * classes + predicted[known]
    counts = np.bincount(pairs, minlength=classes**2)
    counts = counts.reshape(classes, classes)
    self.confusion += counts
    self.counts[number] = (
      counts.diagonal(),
      counts.sum(axis=0),
      counts.sum(axis=1),
    )

  def gathered(self) -> "Overlap":
    """Returns what all processes have counted; all must call it."""
    whole = Overlap(len(self.counts), len(self.confusion))
    whole.counts = of_all_processes(self.counts)
    whole.confusion = of_all_processes(self.confusion)
    return whole

  def ious(self) -> np.ndarray:
    """Returns C: of each class; NaN for one that is in no mask of either."""
    return _ious(self.counts.sum(axis=0))

  def mean(self) -> float:
    """Returns the mIoU, over classes that are in any mask of either."""
    return float(_mean(self.counts.sum(axis=0)))

  def details(self, names: Sequence[str], ceiling: "Overlap") -> dict[str, Any]:
    """Returns "names", and of each class its "iou" and "ceiling_iou".

    And "confusion", [true class][predicted class] pixels, where it could be
    looked at.

    Args:
      names: of the classes.
      ceiling: of the best that patches can do.
    """
    iou, best = (
      dict(zip(names, tables.plain(found.ious()), strict=True))
      for found in (self, ceiling)
    )
    details = {"names": list(names), "iou": iou, "ceiling_iou": best}
    if len(names) <= _MATRIX_CLASSES:
      details["confusion"] = self.confusion.tolist()
    return details

  def accuracy(self) -> float:
    """Returns the share of pixels whose class is right."""
    total = self.confusion.sum()
    return float(self.confusion.trace() / total) if total else float("nan")

  def image_means(self) -> np.ndarray:
    """Returns N: the mean over the classes of each image."""
    return _mean(self.counts)

  def interval(self) -> tuple[float, float]:
    """Returns 95 % of the mIoU over images drawn anew, with repetition."""
    there = self.counts[self.counts[:, 2].any(axis=-1)]
    if not len(there):
      return float("nan"), float("nan")
    rng = np.random.default_rng(_SEED)
    share = np.full(len(there), 1 / len(there))
    weights = rng.multinomial(len(there), share, size=_RESAMPLES)
    sums = weights @ there.reshape(len(there), -1)
    means = _mean(sums.reshape(_RESAMPLES, *there.shape[1:]))
    low, high = np.nanpercentile(means, (2.5, 97.5))
    return float(low), float(high)


def of_all_processes(values: np.ndarray) -> np.ndarray:
  """Returns the sum of int64 or float64 numbers over all processes."""
  if jax.process_count() == 1:
    return values
  # JAX would make 32 bits of them.
  halves = np.ascontiguousarray(values).view(np.int32)
  every = np.asarray(multihost_utils.process_allgather(halves))
  return np.ascontiguousarray(every).view(values.dtype).sum(axis=0)


def _ious(counts: np.ndarray) -> np.ndarray:
  """Returns ...C of ...3C."""
  both, predicted, true = np.moveaxis(counts, -2, 0)
  with np.errstate(invalid="ignore", divide="ignore"):
    return both / (predicted + true - both)


def _mean(counts: np.ndarray) -> np.ndarray:
  """Returns the mean over classes that are there; NaN for none."""
  ious = _ious(counts)
  there = np.isfinite(ious)
  with np.errstate(invalid="ignore"):
    return np.where(there, ious, 0).sum(axis=-1) / there.sum(axis=-1)
