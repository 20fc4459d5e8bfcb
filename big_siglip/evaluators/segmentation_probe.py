"""Segmentation from masks that are given: what frozen patches make easy.

A linear map from patches to classes, and classes of the most similar patches of
other images. Both see no more than the patches. Shape letters: h x w the grid
of patches, L patches, C classes, D numbers of a patch, M patches in memory.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import numpy as np

from big_siglip import progress
from big_siglip.errors import UserError
from big_siglip.evaluators import tables
from big_siglip.evaluators.embed import Embed
from big_siglip.evaluators.grids import unit
from big_siglip.evaluators.masked import Masked
from big_siglip.evaluators.overlap import of_all_processes, Overlap
from big_siglip.evaluators.patches import Sight
from big_siglip.evaluators.result import (
  EXAMPLES,
  MaskExample,
  Result,
  Table,
)
from big_siglip.models.patches import Patches

_TEMPERATURE = 0.02  # Of similar patches' votes (Hummingbird, 2306.01667).
_NO_MASKS = "config.evals: no image to learn from has a mask of a known class"

# Patches hwD -> scores hwC.
Scores = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SegmentationProbe:
  """mIoU of what is learnt from patches of a training split.

  Attributes:
    train: images and masks to learn from.
    test: those to be measured by; of the same classes.
    sight: how patches are seen.
    patches: which features.
    learn: (training images, embed, params) -> scores of patches, and figures.
    baselines: whether pixels and a random tower are measured as well, once.
  """

  train: Masked
  test: Masked
  sight: Sight
  patches: Patches
  learn: Callable[[Masked, Embed, Any], tuple[Scores, dict[str, float]]]
  baselines: bool

  def __call__(self, params: Any) -> Result:
    """Returns figures of the test split.

    "miou"; "pixel_accuracy"; "ceiling_miou", the best that patches of this size
    can do; "raw_miou", learnt from the patches' pixels alone; "random_miou",
    from a tower of random weights; "skipped".
    """
    embed = self.sight.towers(self.patches)
    overlap, figures, examples = self._measure(embed, params)
    ceiling = self.test.ceiling.best()
    there = np.any(overlap.counts[:, 2] > 0, axis=-1)
    metrics = {
      "miou": overlap.mean(),
      "pixel_accuracy": overlap.accuracy(),
      "ceiling_miou": ceiling.mean(),
      **figures,
      "skipped": float(self.test.rows.count - there.sum()),
    }
    if self.baselines:
      metrics |= self._baselines
    return Result(
      metrics,
      overlap.details(self.test.names, ceiling),
      images=int(there.sum()),
      rows=functools.partial(overlap_rows, self.test, overlap),
      intervals={"miou": overlap.interval()},
      examples=examples,
    )

  @functools.cached_property
  def _baselines(self) -> dict[str, float]:
    raw = self._measure(self.sight.raw, None)[0]
    embed = self.sight.towers(self.patches)
    random = self._measure(embed, self.sight.random())[0]
    return {"raw_miou": raw.mean(), "random_miou": random.mean()}

  def _measure(
    self, embed: Embed, params: Any
  ) -> tuple[Overlap, dict[str, float], list[MaskExample]]:
    scores, figures = self.learn(self.train, embed, params)
    found = Overlap(self.test.rows.count, len(self.test.names))
    examples: list[MaskExample] = []
    for number, patches, mask in self.test.each(embed, params):
      predicted = self.test.scores(scores(patches), mask).argmax(axis=-1)
      found.add(number, predicted, mask)
      self.test.ceiling.add(number, mask)
      if len(examples) < EXAMPLES:
        kept = MaskExample(number, mask, predicted.astype(np.uint8))
        examples.append(kept)
    return found.gathered(), figures, examples


def overlap_rows(masked: Masked, overlap: Overlap) -> Table:
  """Returns a row for each image: its file or name, and its own mIoU."""
  there = np.any(overlap.counts[:, 2] > 0, axis=-1)
  means = np.where(there, overlap.image_means(), np.nan)
  return {
    "key": list(map(masked.rows.name, range(masked.rows.count))),
    "row": list(range(masked.rows.count)),
    "miou": tables.plain(means),
    "note": [None if seen else tables.UNREADABLE for seen in there.tolist()],
  }


class _Moments:
  """All that a linear map needs to know of patches: sums of products."""

  def __init__(self, width: int, classes: int):
    """Has seen no patch."""
    self.sums = np.zeros((width + 1 + classes,) * 2)

  def add(self, patches: np.ndarray, shares: np.ndarray) -> None:
    """Adds patches LD and how many of their pixels are of each class, LC."""
    weight = shares.sum(axis=1, keepdims=True)
    known = weight[:, 0] > 0
    weight = weight[known]
    rows = np.concatenate(
      [patches[known], np.ones_like(weight), shares[known] / weight], axis=1
    )
    rows = rows.astype(np.float64) * np.sqrt(weight / weight.max(initial=1))
    self.sums += rows.T @ rows


def linear(
  shrinkage: float, train: Masked, embed: Embed, params: Any
) -> tuple[Scores, dict[str, float]]:
  """Learns a linear map from patches to classes: linear discriminant analysis.

  In closed form over all patches, streamed: memory does not grow with the
  images. Unlike least squares it does not lose classes of few pixels to the
  background. A patch belongs to its classes by their shares of its pixels.

  Args:
    shrinkage: added to the variance of each standardised feature within
      classes.
    train: images and masks.
    embed: images -> patches.
    params: of the model.

  Returns:
    The scores, logarithms of probabilities but for a constant; no figures.

  Raises:
    UserError: no image has a mask.
  """
  classes, moments = len(train.names), None
  for _, patches, mask in train.each(embed, params):
    width = patches.shape[-1]
    moments = moments or _Moments(width, classes)
    shares = train.grid.classes(mask, classes).reshape(-1, classes)
    moments.add(patches.reshape(-1, width), shares)
  if not of_all_processes(np.array(float(moments is not None))):
    raise UserError(_NO_MASKS)
  assert moments is not None  # All processes get all patches.
  with progress.waiting("fitting the probe"):
    sums = of_all_processes(moments.sums)
    weights, bias = _solve(sums, classes, shrinkage)
  return lambda patches: patches @ weights + bias, {}


def _solve(
  sums: np.ndarray, classes: int, shrinkage: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns DC weights and C biases of the discriminant, float32."""
  width = len(sums) - classes - 1
  sums = sums / sums[width, width]
  mean, share = sums[width, :width], sums[width, -classes:]
  deviation = np.sqrt(np.maximum(sums.diagonal()[:width] - mean**2, 0)) + 1e-8
  known = share > 0
  means = sums[:width, -classes:] / np.where(known, share, 1)
  means = np.where(known, (means - mean[:, None]) / deviation[:, None], 0)
  total = (sums[:width, :width] - np.outer(mean, mean)) / np.outer(
    deviation, deviation
  )
  within = total - (means * share) @ means.T
  weights = np.linalg.solve(within + shrinkage * np.eye(width), means)
  bias = np.log(np.maximum(share, 1e-30)) - (means * weights).sum(axis=0) / 2
  weights /= deviation[:, None]
  bias -= mean @ weights
  return weights.astype(np.float32), bias.astype(np.float32)


def nearest(
  memory: int, neighbours: int, train: Masked, embed: Embed, params: Any
) -> tuple[Scores, dict[str, float]]:
  """Remembers patches, and lets the most similar ones vote.

  Args:
    memory: how many patches are remembered, at most; as many of each image.
    neighbours: how many vote, each by its cosine.
    train: images and masks.
    embed: images -> patches.
    params: of the model.

  Returns:
    The scores, and {"memory": patches that are remembered}.

  Raises:
    UserError: no image has a mask.
  """
  classes, count = len(train.names), train.rows.count
  own = max(1, min(memory // count, train.grid.most))
  images = min(count, memory // own)
  bank: np.ndarray | None = None
  for number, patches, mask in train.each(embed, params):
    width = patches.shape[-1]
    if bank is None:
      bank = np.zeros((images * own, width + classes))
    if number >= images:
      continue
    shares = train.grid.classes(mask, classes).reshape(-1, classes)
    order = np.random.default_rng(number).permutation(len(shares))[:own]
    bank[number * own : number * own + len(order)] = np.concatenate(
      [unit(patches.reshape(-1, width)), shares], axis=1
    )[order]
  if not of_all_processes(np.array(float(bank is not None))):
    raise UserError(_NO_MASKS)
  bank = of_all_processes(bank)
  votes = bank[:, -classes:]
  known = votes.sum(axis=1) > 0
  keys = bank[known, :-classes].astype(np.float32)
  votes = votes[known] / votes[known].sum(axis=1, keepdims=True)
  if not len(keys):
    raise UserError(_NO_MASKS)
  most = min(neighbours, len(keys))

  def scores(patches: np.ndarray) -> np.ndarray:
    flat = unit(patches.reshape(-1, patches.shape[-1]))
    cosines = flat @ keys.T
    near = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
    cosines = np.take_along_axis(cosines, near, axis=1)
    share = np.exp(
      (cosines - cosines.max(axis=1, keepdims=True)) / _TEMPERATURE
    )
    share /= share.sum(axis=1, keepdims=True)
    found = np.einsum("lk,lkc->lc", share, votes[near])
    return found.reshape(*patches.shape[:2], classes).astype(np.float32)

  return scores, {"memory": float(len(keys))}
