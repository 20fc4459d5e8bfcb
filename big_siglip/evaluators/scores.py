"""Metrics that are means over images: what each image adds to them.

Shape letters: N images, M values, A right classes of an image.
"""

from typing import NamedTuple

import numpy as np

TOP = 5
KS = (1, 5, 10)
WAYS = ("image_to_text", "text_to_image")


class Score(NamedTuple):
  """A metric: the mean of its values, or the mean over groups of their means.

  Attributes:
    image: M, the number of the image that each value is of.
    value: M float64 in [0, 1].
    group: M, the class or language of each value; None for no groups. One
      without values does not count.
  """

  image: np.ndarray
  value: np.ndarray
  group: np.ndarray | None = None

  def mean(self) -> float:
    """Returns the metric."""
    return float(np.nanmean(self.means()))

  def means(self, groups: int = 1) -> np.ndarray:
    """Returns the mean of each group, NaN without values; at least `groups`."""
    group = self.group
    if group is None:
      group = np.zeros(len(self.value), int)
    counts = np.bincount(group, minlength=groups)
    sums = np.bincount(group, weights=self.value, minlength=groups)
    with np.errstate(invalid="ignore"):
      return sums / counts


def plain(value: np.ndarray) -> Score:
  """Returns the score of N images, a value each."""
  return Score(np.arange(len(value)), np.asarray(value, np.float64))


def classified(
  right: np.ndarray, rank: np.ndarray, answers: np.ndarray
) -> dict[str, Score]:
  """Returns the scores of a classification.

  Args:
    right: N bool.
    rank: N, the place of the best right class, from 1 on; infinite for none.
    answers: NA, the right classes, padded with -1. An image with several counts
      for each of them.
  """
  image, column = np.nonzero(answers >= 0)
  return {
    "accuracy": plain(right),
    f"top{TOP}": plain(rank <= TOP),
    "per_class": Score(
      image, right[image].astype(np.float64), answers[image, column]
    ),
  }


def retrieved(
  rank: np.ndarray,
  image: np.ndarray,
  group: np.ndarray | None = None,
  ks: tuple[int, ...] = KS,
) -> dict[str, Score]:
  """Returns "recall@K": whether a match is among the K nearest candidates.

  Args:
    rank: M, the place of each query's best match, from 1 on; infinite for none.
    image: M, the image that each query is, or describes.
    group: M, the language of each; None for one.
    ks: the cut-offs.
  """
  return {
    f"recall@{k}": Score(image, (rank <= k).astype(np.float64), group)
    for k in ks
  }


def recalls(
  way: np.ndarray, language: np.ndarray, image: np.ndarray, rank: np.ndarray
) -> dict[str, Score]:
  """Returns recall of both ways, and of each language that has a name.

  Args:
    way: M, one of `WAYS`.
    language: M, "" for a single one.
    image: M; see `retrieved`.
    rank: M.
  """
  found = {}
  names, number = np.unique(language, return_inverse=True)
  for one in WAYS:
    own = way == one
    scores = retrieved(rank[own], image[own], number[own])
    found |= {f"{one}/{name}": score for name, score in scores.items()}
  for name in filter(None, names.tolist()):
    for one in WAYS:
      own = (language == name) & (way == one)
      scores = retrieved(rank[own], image[own])
      found |= {f"{name}/{one}/{k}": score for k, score in scores.items()}
  return found
