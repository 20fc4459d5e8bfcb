"""Few-shot and linear probes: how far the image features alone go."""

import dataclasses
from typing import Any

import numpy as np

from big_siglip.errors import UserError
from big_siglip.evaluators import probes
from big_siglip.evaluators.embed import Embed, Rows
from big_siglip.evaluators.result import counted, Result

_HELD_OUT = 5  # Every fifth training image chooses the penalty.


@dataclasses.dataclass(frozen=True)
class Features:
  """The images of a training and a test split, and how to look at them.

  Attributes:
    train: padded batches with "image", "answers" [b, 1], "index" and "mask".
    test: the same.
    num_images: of both, with those that cannot be read.
    num_classes: how many classes there are.
    embed: see `big_siglip.evaluators.embed`; features before normalisation.
  """

  train: Rows
  test: Rows
  num_images: int
  num_classes: int
  embed: Embed

  def of(self, params: Any) -> tuple[tuple[np.ndarray, ...], dict[str, float]]:
    """Returns features and labels for training and for testing, and counts.

    Features that are not finite teach nothing, and are not right in the test.
    Counted are "skipped", images that have no class or cannot be read, and
    "nonfinite", if there are any.

    Raises:
      UserError: a split has no image with a class, or training none of two.
    """
    split, counted_images, nonfinite = [], 0, 0
    for rows in (self.train, self.test):
      features, values = rows.embed(self.embed, params, labels=("answers",))
      labels = values["answers"][:, 0]
      known = labels >= 0
      counted_images += int(known.sum())
      nonfinite += int((known & ~values["finite"]).sum())
      if rows is self.train:
        known &= values["finite"]
      if len(np.unique(labels[known])) < (2 if not split else 1):
        raise UserError(
          "config.evals: a probe needs images of two classes to learn from, "
          "and one to be tested on"
        )
      split += [features[known], labels[known]]
    skipped = float(self.num_images - counted_images)
    return tuple(split), {"skipped": skipped, **counted(nonfinite)}


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Accuracy of a linear classifier learnt from a few images of each class.

  Attributes:
    features: of the images.
    shots: how many of each class; one with fewer gives what it has.
    seeds: how many random choices of them are tried.
    l2: see `probes.least_squares`.
  """

  features: Features
  shots: tuple[int, ...]
  seeds: int
  l2: float

  def __call__(self, params: Any) -> Result:
    """Returns "accuracy_10shot" ..., the means over seeds, and "skipped"."""
    (x, y, x_test, y_test), counts = self.features.of(params)
    num_classes = self.features.num_classes
    accuracies = {shots: [] for shots in self.shots}
    for seed in range(self.seeds):
      order = probes.choose_shots(y, num_classes, seed)
      for shots in self.shots:
        chosen = np.concatenate([of_class[:shots] for of_class in order])
        fitted = probes.least_squares(
          x[chosen], y[chosen], num_classes, self.l2
        )
        accuracies[shots].append(fitted.accuracy(x_test, y_test))
    return Result(
      {
        **{
          f"accuracy_{shots}shot": float(np.mean(values))
          for shots, values in accuracies.items()
        },
        **counts,
      },
      {"accuracy_by_seed": {str(k): v for k, v in accuracies.items()}},
    )


@dataclasses.dataclass(frozen=True)
class LinearProbe:
  """Accuracy of a logistic regression learnt from a whole training split.

  Attributes:
    features: of the images.
    penalties: values of l2 to choose from (`probes.logistic_path`). The one
      that is best on every fifth training image, learnt from the rest, is
      learnt again from all.
  """

  features: Features
  penalties: tuple[float, ...]

  def __call__(self, params: Any) -> Result:
    """Returns "accuracy", "l2" (that was chosen) and "skipped"."""
    (x, y, x_test, y_test), counts = self.features.of(params)
    penalties = sorted(self.penalties, reverse=True)
    held_out = np.arange(len(x)) % _HELD_OUT == 0
    num_classes = self.features.num_classes
    path = probes.logistic_path(
      x[~held_out], y[~held_out], num_classes, penalties
    )
    scores = [fit.accuracy(x[held_out], y[held_out]) for fit in path]
    best = int(np.argmax(scores))  # Of equal ones the strongest.
    final = probes.logistic_path(x, y, num_classes, penalties[: best + 1])[-1]
    return Result(
      {
        "accuracy": final.accuracy(x_test, y_test),
        "l2": float(penalties[best]),
        **counts,
      },
      {"l2": list(map(float, penalties)), "held_out_accuracy": scores},
    )
