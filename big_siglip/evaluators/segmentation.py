"""Segmentation without training: which label each pixel is most likely of.

Each patch is asked about each label, as an image is (`models.patches`: the pool
of one patch). Scores are interpolated between patches, never labels. A pixel
whose best label is not likely enough is background: a sigmoid's probabilities
may all be low, which a softmax's cannot. Shape letters: h x w the grid of
patches, H and W pixels, C classes, E embedding, K thresholds.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from scipy import special

from big_siglip.data.masks import IGNORED
from big_siglip.evaluators import tables
from big_siglip.evaluators.classification import classifier
from big_siglip.evaluators.embed import Embedders, Rows
from big_siglip.evaluators.grids import unit
from big_siglip.evaluators.masked import Masked
from big_siglip.evaluators.overlap import of_all_processes, Overlap
from big_siglip.evaluators.patches import Sight
from big_siglip.evaluators.result import EXAMPLES, MaskExample, Result
from big_siglip.evaluators.segmentation_probe import overlap_rows
from big_siglip.models.patches import Patches

# Cosines of a patch and a label, above which it is no background.
_THRESHOLDS = np.linspace(-0.5, 1.0, 76).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """mIoU of masks that come from prompts alone.

  Attributes:
    masked: the images and their masks.
    background: the number of the class that gets what no label is likely for;
      None: every class has prompts, and the likeliest one wins.
    prompts: padded batches with "text", "index" and "mask".
    prompt_classes: the class of each prompt.
    sight: how patches are seen.
    embedders: of the model.
    patches: which features.
    centered: whether the mean of an image's patches is taken off each.
    threshold: the least probability of a label.
    baselines: whether a random tower is measured as well, once.
  """

  masked: Masked
  background: int | None
  prompts: Rows
  prompt_classes: np.ndarray
  sight: Sight
  embedders: Embedders
  patches: Patches
  centered: bool
  threshold: float
  baselines: bool

  def __call__(self, params: Any) -> Result:
    """Returns figures of the whole set.

    "miou" and "pixel_accuracy" at `threshold`; with a background also
    "best_miou", at the threshold that suits these very masks best (what a model
    without a trained bias has to be compared by), and "best_threshold", that
    cosine; "ceiling_miou", the best that patches of this size can do;
    "random_miou", of a tower of random weights; "skipped".
    """
    found = self._measure(params)
    counts = found.overlap.counts[:, 2].any(axis=-1)
    ceiling = found.ceiling.best()
    metrics = {
      "miou": found.overlap.mean(),
      "pixel_accuracy": found.overlap.accuracy(),
      **found.best(self.background),
      "ceiling_miou": ceiling.mean(),
      "skipped": float(self.masked.rows.count - counts.sum()),
    }
    if self.baselines:
      metrics |= self._random
    names, background = self.masked.names, self.background
    details = {
      **found.overlap.details(names, ceiling),
      "background": None if background is None else names[background],
      "settings": {
        "patches": self.patches.kind,
        "pool_mlp": self.patches.pool_mlp,
        "centered": self.centered,
        "threshold": self.threshold,
      },
      **found.curve(self.background),
    }
    return Result(
      metrics,
      details,
      images=int(counts.sum()),
      rows=functools.partial(overlap_rows, self.masked, found.overlap),
      intervals={"miou": found.overlap.interval()},
      examples=found.examples,
    )

  @functools.cached_property
  def _random(self) -> dict[str, float]:
    found = self._measure(self.sight.random())
    best = found.best(self.background)
    return {
      "random_miou": found.overlap.mean(),
      **{f"random_{k}": v for k, v in best.items() if k == "best_miou"},
    }

  def _measure(self, params: Any) -> "_Measured":
    classes = len(self.masked.names)
    text, of_text = self.prompts.embed(self.embedders.text, params)
    of_class = classifier(text, self.prompt_classes[of_text["index"]], classes)
    scale, bias = self.embedders.logits(params)
    # The cosine at which the sigmoid is the threshold.
    least = (special.logit(self.threshold) - bias) / scale
    measured = _Measured(self.masked)
    embed = self.sight.towers(self.patches)
    for number, patches, mask in self.masked.each(embed, params):
      if self.centered:
        patches = centered(patches)
      cosines = self.masked.scores(patches @ of_class.T, mask)
      if self.background is not None:
        cosines[..., self.background] = -np.inf
      label, likely = cosines.argmax(axis=-1), cosines.max(axis=-1)
      predicted = label
      if self.background is not None:
        measured.count(label, likely, mask)
        predicted = np.where(likely >= least, label, self.background)
      measured.overlap.add(number, predicted, mask)
      measured.ceiling.add(number, mask)
      measured.keep(number, mask, predicted)
    measured.gather()
    return measured


class _Measured:
  """What was counted.

  Attributes:
    overlap: of the prediction with the masks.
    ceiling: of the best that patches can do.
    pairs: C C (K + 1) int64: true class, best label, and above how many
      thresholds it is.
    examples: the first images.
  """

  def __init__(self, masked: Masked):
    """Has counted nothing yet."""
    classes = len(masked.names)
    self.overlap = Overlap(masked.rows.count, classes)
    self.ceiling = masked.ceiling
    shape = classes, classes, len(_THRESHOLDS) + 1
    self.pairs = np.zeros(shape, np.int64)
    self.examples: list[MaskExample] = []

  def count(self, label, likely: np.ndarray, mask: np.ndarray) -> None:
    """Counts an image's pixels by class, label and cosine."""
    known = mask != IGNORED
    above = np.searchsorted(_THRESHOLDS, likely[known], side="right")
    place = np.ravel_multi_index(
      (mask[known].astype(np.int64), label[known], above), self.pairs.shape
    )
    counts = np.bincount(place, minlength=self.pairs.size)
    self.pairs += counts.reshape(self.pairs.shape)

  def keep(self, number: int, mask: np.ndarray, predicted: np.ndarray) -> None:
    """Keeps an image for a picture, if it is one of the first."""
    if len(self.examples) < EXAMPLES:
      example = MaskExample(number, mask, predicted.astype(np.uint8))
      self.examples.append(example)

  def gather(self) -> None:
    """Adds what other processes have counted."""
    self.overlap = self.overlap.gathered()
    self.pairs = of_all_processes(self.pairs)

  def best(self, background: int | None) -> dict[str, float]:
    """Returns "best_miou" and "best_threshold", a cosine."""
    if background is None:
      return {}
    means = self._means(background)
    best = int(np.nanargmax(means))
    return {
      "best_miou": float(means[best]),
      "best_threshold": float(_THRESHOLDS[best]),
    }

  def curve(self, background: int | None) -> dict[str, Any]:
    """Returns the mIoU at each threshold, for a picture."""
    if background is None:
      return {}
    means = tables.plain(self._means(background))
    return {"thresholds": tables.plain(_THRESHOLDS), "mious": means}

  def _means(self, background: int) -> np.ndarray:
    """Returns K: the mIoU at each threshold."""
    means = []
    for k in range(len(_THRESHOLDS)):
      confusion = self.pairs[..., k + 1 :].sum(axis=-1)
      confusion[:, background] += self.pairs[..., : k + 1].sum(axis=(1, 2))
      found = Overlap(1, len(confusion))
      found.counts[0] = (
        confusion.diagonal(),
        confusion.sum(axis=0),
        confusion.sum(axis=1),
      )
      means.append(found.mean())
    return np.array(means)


def centered(patches: np.ndarray) -> np.ndarray:
  """Returns patches hwE less their mean over the image, of length 1.

  What all patches of an image share tells none of them from another.
  """
  return unit(patches - patches.mean(axis=(0, 1)))
