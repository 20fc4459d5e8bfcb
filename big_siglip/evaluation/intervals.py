"""Intervals of metrics that are means over images: the bootstrap.

Images are drawn anew, with repetition, and with each image all that it adds to
the metric: its captions, its classes, its languages. Shape letters: N images, K
kinds of them, R resamples, E entries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from big_siglip.evaluators.scores import Score

LEVEL = 0.95
RESAMPLES = 10_000
_SEED = 0
_AT_ONCE = 2**22  # Numbers in memory.

Interval = tuple[float, float]


def interval(score: Score) -> Interval:
  """Returns the interval of a metric, percentiles of its resamples.

  Where all images count alike, no resample differs. Then the limits are those
  of Clopper and Pearson (doi:10.1093/biomet/26.4.404): of N right images of N
  the share may be as low as 0.025^(1 / N).
  """
  (values,) = resampled([score])
  return _limits(values, len(np.unique(score.image)), 0.0)


def difference(before: Score, after: Score) -> Interval:
  """Returns the interval of `after` - `before`, over the same images.

  Both are drawn together, so that what is hard for both says nothing.
  """
  first, second = resampled([before, after])
  return _limits(second - first, len(np.unique(before.image)), -1.0)


def resampled(scores: Sequence[Score]) -> np.ndarray:
  """Returns metrics of the same images over the same resamples, SR.

  A group that a resample does not meet is left out of it.
  """
  kinds = [_kinds(score) for score in scores]
  # Images of one kind in all scores are one kind.
  joint = np.unique(np.stack([k.of_image for k in kinds], 1), axis=0,
                    return_inverse=True, return_counts=True)  # fmt: skip
  members, _, counts = joint
  images = int(counts.sum())
  rng = np.random.default_rng(_SEED)
  shares = counts / images
  entries = sum(len(kind.group) for kind in kinds)
  size = max(_AT_ONCE // (len(counts) + entries), 1)
  parts = []
  for start in range(0, RESAMPLES, size):
    rows = min(size, RESAMPLES - start)
    weights = rng.multinomial(images, shares, size=rows)
    parts.append([
      _means(kind, members[:, i], weights) for i, kind in enumerate(kinds)
    ])  # fmt: skip
  return np.concatenate(parts, axis=1)


class _Kinds(NamedTuple):
  """Images that add the same to a metric, as one.

  Attributes:
    of_image: N, the kind of each image.
    kind: E, ascending by group.
    group: E.
    total: E, the sum of the values.
    count: E, how many they are.
  """

  of_image: np.ndarray
  kind: np.ndarray
  group: np.ndarray
  total: np.ndarray
  count: np.ndarray


def _kinds(score: Score) -> _Kinds:
  group = score.group
  if group is None:
    group = np.zeros(len(score.value), int)
  _, image = np.unique(score.image, return_inverse=True)
  pairs, where = np.unique(
    np.stack([image, group], 1), axis=0, return_inverse=True
  )
  count = np.bincount(where)
  total = np.bincount(where, weights=score.value)
  starts = np.searchsorted(pairs[:, 0], np.arange(image.max() + 2))
  known: dict[tuple, int] = {}
  of_image, entries = [], []
  for first, end in zip(starts[:-1], starts[1:], strict=True):
    own = [part[first:end].tolist() for part in (pairs[:, 1], total, count)]
    key = tuple(zip(*own, strict=True))
    if key not in known:
      known[key] = len(known)
      entries += [(known[key], *entry) for entry in key]
    of_image.append(known[key])
  entries.sort(key=lambda entry: entry[1])
  columns = map(np.array, zip(*entries, strict=True))
  return _Kinds(np.array(of_image), *columns)


def _means(
  kinds: _Kinds, members: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Returns R metrics of resamples.

  Args:
    kinds: of one score.
    members: the kind, in it, of each joint kind.
    weights: how often each joint kind was drawn, R times.
  """
  drawn = np.zeros((len(weights), kinds.of_image.max() + 1))
  np.add.at(drawn, (slice(None), members), weights)
  entries = drawn[:, kinds.kind]
  starts = np.flatnonzero(np.diff(kinds.group, prepend=-1))
  totals = np.add.reduceat(entries * kinds.total, starts, axis=1)
  counts = np.add.reduceat(entries * kinds.count, starts, axis=1)
  with np.errstate(invalid="ignore"):
    return np.nanmean(totals / counts, axis=1)


def _limits(values: np.ndarray, images: int, least: float) -> Interval:
  low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  if low == high and float(low).is_integer():
    margin = 1 - ((1 - LEVEL) / 2) ** (1 / images)
    low, high = max(low - margin, least), min(high + margin, 1.0)
  return float(low), float(high)
