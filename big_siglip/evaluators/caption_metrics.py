"""How near what is written comes to what is true: words of captions, boxes.

CIDEr-D and BLEU-4 as COCO's captions are scored (Chen et al. 2015,
arXiv:1504.00325), without Java: `caption_tokens` makes the words.

Shape letters: N images, n lengths of n-grams, 1 to 4.
"""

import collections
from collections.abc import Mapping, Sequence
import math

import numpy as np

_LENGTHS = 4
_SIGMA = 6.0  # Words, of the penalty for another length.
_SCALE = 10.0

Words = Sequence[str]
_Grams = collections.Counter[tuple[str, ...]]


def cider(
  written: Sequence[Words], true: Sequence[Sequence[Words]]
) -> np.ndarray:
  """Returns the CIDEr-D of each image; their mean is that of all.

  Vedantam et al. 2015 (arXiv:1411.5726, sections 4 and 5): the cosine of counts
  of n-grams, each times the logarithm of in how few images its like is said.
  CIDEr-D cuts counts to those of the reference, and counts other lengths less.
  How rare an n-gram is depends on all images, so it is no number of one: of a
  single image it is 0.

  Args:
    written: the words of N captions.
    true: of the references of each, one at least.

  Returns:
    float64 [N], from 0 to 10: for what is equal to the only reference.
  """
  own = [_grams(words) for words in written]
  given = [[_grams(words) for words in texts] for texts in true]
  images = collections.Counter(
    gram
    for texts in given
    for gram in {gram for grams in texts for n in grams for gram in n}
  )
  log_count = math.log(len(written)) if len(written) else 0.0

  def weighted(grams: Sequence[_Grams]) -> list[dict[tuple[str, ...], float]]:
    return [
      {g: k * (log_count - math.log(max(1, images[g]))) for g, k in n.items()}
      for n in grams
    ]

  scores = np.zeros(len(written))
  for i, grams in enumerate(own):
    vectors, length = weighted(grams), _length(grams)
    total = 0.0
    for other in given[i]:
      alike = _cosines(vectors, weighted(other))
      # COCO's tool takes the number of bigrams for the length.
      apart = length - _length(other)
      total += alike * math.exp(-(apart**2) / (2 * _SIGMA**2))
    scores[i] = _SCALE * total / max(1, len(given[i]))
  return scores


def _grams(words: Words) -> list[_Grams]:
  """Returns the n-grams of a text, counted, by their lengths."""
  return [
    collections.Counter(
      tuple(words[i : i + n]) for i in range(len(words) - n + 1)
    )
    for n in range(1, _LENGTHS + 1)
  ]


def _length(grams: Sequence[_Grams]) -> int:
  return grams[1].total()


def _cosines(
  written: Sequence[Mapping[tuple[str, ...], float]],
  true: Sequence[Mapping[tuple[str, ...], float]],
) -> float:
  """Returns the mean over n; written weights are cut to the true ones."""
  total = 0.0
  for one, two in zip(written, true, strict=True):
    norms = _norm(one) * _norm(two)
    if norms:
      shared = sum(min(w, two[g]) * two[g] for g, w in one.items() if g in two)
      total += shared / norms
  return total / _LENGTHS


def _norm(vector: Mapping[tuple[str, ...], float]) -> float:
  return math.sqrt(sum(value * value for value in vector.values()))


def bleu_counts(
  written: Sequence[Words], true: Sequence[Sequence[Words]]
) -> np.ndarray:
  """Returns what `bleu` takes of each image, to be summed over images.

  Args:
    written: the words of N captions.
    true: of the references of each, one at least.

  Returns:
    int64 [N, 2 + 2 n]: words written, words of the reference whose length is
    nearest (of two the shorter), n-grams that are in a reference (as often as
    in the one that has most), and n-grams in all.
  """
  counts = np.zeros((len(written), 2 + 2 * _LENGTHS), np.int64)
  for row, words, texts in zip(counts, written, true, strict=True):
    row[0] = len(words)
    row[1] = min((abs(len(t) - len(words)), len(t)) for t in texts)[1]
    most: list[_Grams] = [collections.Counter() for _ in range(_LENGTHS)]
    for text in texts:
      most = [m | grams for m, grams in zip(most, _grams(text), strict=True)]
    for n, grams in enumerate(_grams(words)):
      row[2 + n] = (grams & most[n]).total()
      row[2 + _LENGTHS + n] = grams.total()
  return counts


def bleu(counts: np.ndarray) -> np.ndarray:
  """Returns the BLEU-4, from 0 to 1, of summed counts.

  Papineni et al. 2002: the geometric mean of the shares of n-grams that are
  right, less where all captions together are too short. It is one number of a
  whole data set: no mean over images, and 0 where no 4-gram is right.

  Args:
    counts: [..., 2 + 2 n], sums of `bleu_counts` over images.
  """
  counts = np.asarray(counts, np.float64)
  length, nearest = counts[..., 0], counts[..., 1]
  right = counts[..., 2 : 2 + _LENGTHS]
  total = counts[..., 2 + _LENGTHS :]
  with np.errstate(divide="ignore", invalid="ignore"):
    logs = np.log(right) - np.log(total)
    short = np.minimum(0, 1 - nearest / length)
    return np.where(
      (right > 0).all(axis=-1), np.exp(logs.mean(axis=-1) + short), 0.0
    )


def exact(
  written: Sequence[Words], true: Sequence[Sequence[Words]]
) -> np.ndarray:
  """Returns which captions are a reference, word for word; bool [N]."""
  return np.array(
    [
      any(list(words) == list(text) for text in texts)
      for words, texts in zip(written, true, strict=True)
    ],
    bool,
  )


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Returns the intersection over union of boxes; float64 [...].

  Args:
    first: [..., 4], (top, left, bottom, right). One that is NaN, or turned
      around, shares nothing with any.
    second: the same; shapes broadcast.
  """
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  shared = _area(
    np.concatenate(
      [
        np.maximum(first[..., :2], second[..., :2]),
        np.minimum(first[..., 2:], second[..., 2:]),
      ],
      axis=-1,
    )
  )
  union = _area(first) + _area(second) - shared
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(union > 0, shared / union, 0.0)


def _area(boxes: np.ndarray) -> np.ndarray:
  sides = np.nan_to_num(boxes[..., 2:] - boxes[..., :2], nan=0.0)
  return sides.clip(0).prod(axis=-1)
