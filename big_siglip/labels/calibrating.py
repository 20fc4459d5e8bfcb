"""Scale and bias of the logits, fitted to labelled or captioned images.

The images of even number and those of odd number each fit what the others are
measured by; what is kept is fitted to all of them.

Shape letters: N images, T texts, E embedding width.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from big_siglip.data.sources import Source
from big_siglip.errors import UserError
from big_siglip.evaluators import calibration as fitting
from big_siglip.evaluators import texts_of
from big_siglip.evaluators.loading import Loader
from big_siglip.evaluators.pairs import embed_pairs, Pairs
from big_siglip.evaluators.prompts import fill_templates
from big_siglip.labels import images
from big_siglip.trained.calibrated import Calibration, trained_numbers
from big_siglip.trained.inference import Model

_MEASURES = ("ece", "brier", "log_loss")


class Seen(NamedTuple):
  """Pairs to fit to.

  Attributes:
    pairs: all of them.
    index: N, the images' numbers in the data set.
    by_image: whether a text belongs to one image (a caption) and stays with it;
      a label is asked of all of them.
    skipped: images that were left out.
  """

  pairs: Pairs
  index: np.ndarray
  by_image: bool
  skipped: int

  def half(self, number: int) -> Pairs:
    """Returns the pairs of the images of even number (0) or of odd (1)."""
    own = self.index % 2 == number
    every = self.pairs
    if self.by_image:
      return every.part(number, 2)
    return Pairs(
      every.image[own], every.image_ids[own], every.text, every.text_ids
    )


def see_labels(
  model: Model,
  wanted: images.Wanted,
  source: Source,
  templates: Sequence[str],
  show: Callable[[int], None],
) -> Seen:
  """Pairs each image with each label.

  Args:
    model: the model.
    wanted: what `source` was opened for.
    source: the examples.
    templates: sentences around a label, with "{}".
    show: told how many more images are done.

  Raises:
    UserError: there are no labels, or images of less than two.
  """
  kind = "classification"
  found = images.embed_labelled(model, wanted, source, show, kind)
  texts = model.embed_classes(fill_templates(templates, found.names))
  if not np.isfinite(texts).all():
    raise UserError(f"{wanted}: the embedding of a label is not finite")
  pairs = Pairs(found.embeddings, found.labels, texts, np.arange(len(texts)))
  return Seen(pairs, found.index, False, found.skipped + found.unlabelled)


def see_captions(
  model: Model,
  wanted: images.Wanted,
  source: Source,
  show: Callable[[int], None],
) -> Seen:
  """Pairs each image with each caption; those of other images are wrong.

  Args:
    model: the model.
    wanted: what `source` was opened for.
    source: the examples.
    show: told how many more images are done.

  Raises:
    UserError: there are no captions.
  """
  loader = Loader(str(wanted), model.preprocess, 64, model.embedders.devices)
  pairs, values, _ = embed_pairs(
    model.embedders,
    model.params,
    images.load_images(model, wanted, source, show),
    loader.captions(texts_of(source)),
  )
  skipped = len(source) - len(pairs.image)
  return Seen(pairs, values["index"], True, skipped)


def calibrate(
  model: Model, seen: Seen, data: str, templates: Sequence[str], prior=None
) -> Calibration:
  """Returns the scale and bias of greatest likelihood.

  Few pairs are doubted a little (`evaluators.calibration.doubt_of`), so that
  there is one where a threshold tells right pairs from wrong ones.

  Args:
    model: calibrated or not; what it was trained to is what is compared.
    seen: the pairs.
    data: what they are, in words.
    templates: of labels; empty for captions.
    prior: the share of right pairs to weigh for; None: that of the pairs.

  Raises:
    UserError: too few pairs, or right ones lie no nearer than wrong ones.
  """
  halves = [seen.half(0), seen.half(1)]
  if not all(half.num_positive and half.num_negative for half in halves):
    raise UserError(
      f"{data}: a calibration needs right and wrong pairs among the images of "
      f"even number and among those of odd; there are {len(seen.index)} images"
    )
  bare = dataclasses.replace(model, calibration=None)
  start = bare.logit_scale, bare.logit_bias

  def fit(pairs: Pairs) -> tuple[float, float]:
    weights = fitting.weigh(pairs, prior)
    return fitting.fit(pairs, weights, start, fitting.doubt_of(pairs))

  found = {"trained": [start, start], "calibrated": [*map(fit, halves[::-1])]}
  measured = {}
  for name, numbers in found.items():
    each = [
      fitting.measure(half, fitting.weigh(half, prior), *own)[0]
      for half, own in zip(halves, numbers, strict=True)
    ]
    measured[name] = {
      key: float(np.mean([metrics[key] for metrics in each]))
      for key in _MEASURES
    }
  scale, bias = fit(seen.pairs)
  if not scale > 0:
    raise UserError(
      f"{data}: right pairs lie no nearer than wrong ones (the scale would be "
      f"{scale:.3g}), so that no calibration can tell them apart"
    )
  every = seen.pairs
  total = every.num_positive + every.num_negative
  return Calibration(
    scale=scale,
    bias=bias,
    trained=trained_numbers(model.params),
    data=data,
    images=len(every.image),
    texts=len(every.text),
    prior=every.num_positive / total if prior is None else prior,
    templates=list(templates),
    measured=measured,
  )
