"""Few-shot and linear probes: how far the image features alone go."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from big_siglip import progress
from big_siglip.errors import UserError
from big_siglip.evaluators import probes, tables
from big_siglip.evaluators.embed import Embed, Rows
from big_siglip.evaluators.result import counted, Result, Table
from big_siglip.evaluators.scores import plain

_HELD_OUT = 5  # Every fifth training image chooses the penalty.
_TOO_FEW = (
  "config.evals: a probe needs images of two classes to learn from, and one to "
  "be tested on"
)


class Split(NamedTuple):
  """Features of the images to learn from, and of those to be tested on.

  Attributes:
    train: ND.
    labels: N, classes.
    test: MD, of all images that could be read.
    answers: M, classes; -1 for an image that has none, which does not count.
    index: M, the images' numbers in their data set.
    counts: "skipped", images that have no class or cannot be read, and
      "nonfinite", features that are not finite, if there are any.
  """

  train: np.ndarray
  labels: np.ndarray
  test: np.ndarray
  answers: np.ndarray
  index: np.ndarray
  counts: dict[str, float]

  def right(self, predicted: np.ndarray) -> np.ndarray:
    """Returns which of the images that count are right, from M classes."""
    known = self.answers >= 0
    return predicted[known] == self.answers[known]


@dataclasses.dataclass(frozen=True)
class Features:
  """The images of a training and a test split, and how to look at them.

  Attributes:
    train: padded batches with "image", "answers" [b, 1], "index" and "mask".
    test: the same.
    num_images: of each of the two, with those that cannot be read.
    names: what to call each class.
    embed: see `big_siglip.evaluators.embed`; features before normalisation.
  """

  train: Rows
  test: Rows
  num_images: tuple[int, int]
  names: tuple[str, ...]
  embed: Embed

  def of(self, params: Any) -> Split:
    """Returns features and labels for training and for testing.

    Features that are not finite teach nothing, and are not right in the test.

    Raises:
      UserError: a split has no image with a class, or training none of two.
    """
    x, y, of_train = self._embed(self.train, params, 2)
    test, answers, of_test = self._embed(self.test, params, 1)
    good = (y >= 0) & of_train["finite"]
    if len(np.unique(y[good])) < 2:
      raise UserError(_TOO_FEW)
    counted_images = sum(int((labels >= 0).sum()) for labels in (y, answers))
    nonfinite = sum(
      int((~values["finite"] & (labels >= 0)).sum())
      for values, labels in ((of_train, y), (of_test, answers))
    )
    counts = {
      "skipped": float(sum(self.num_images) - counted_images),
      **counted(nonfinite),
    }
    return Split(x[good], y[good], test, answers, of_test["index"], counts)

  def _embed(self, rows: Rows, params: Any, least: int):
    """Returns features, classes and values; of `least` classes or more."""
    features, values = rows.embed(self.embed, params, labels=("answers",))
    labels = values["answers"][:, 0]
    if len(np.unique(labels[labels >= 0])) < least:
      raise UserError(_TOO_FEW)
    return features, labels, values


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
    split = self.features.of(params)
    x, y, num_classes = split.train, split.labels, len(self.features.names)
    hits = {shots: [] for shots in self.shots}
    with progress.Progress(self.seeds * len(hits), "probes") as show:
      for seed in range(self.seeds):
        order = probes.choose_shots(y, num_classes, seed)
        for shots in self.shots:
          chosen = np.concatenate([of_class[:shots] for of_class in order])
          fitted = probes.least_squares(
            x[chosen], y[chosen], num_classes, self.l2
          )
          hits[shots].append(split.right(fitted.predict(split.test)))
          show.add(1)
    accuracies = {
      shots: [float(np.mean(right)) for right in of_seeds]
      for shots, of_seeds in hits.items()
    }
    return Result(
      {
        **{
          f"accuracy_{shots}shot": float(np.mean(values))
          for shots, values in accuracies.items()
        },
        **split.counts,
      },
      {"accuracy_by_seed": {str(k): v for k, v in accuracies.items()}},
      images=int((split.answers >= 0).sum()),
      scores={
        f"accuracy_{shots}shot": plain(np.mean(of_seeds, axis=0))
        for shots, of_seeds in hits.items()
      },
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
    split = self.features.of(params)
    x, y, num_classes = split.train, split.labels, len(self.features.names)
    penalties = sorted(self.penalties, reverse=True)
    held_out = np.arange(len(x)) % _HELD_OUT == 0
    with progress.waiting("fitting the probe"):
      path = probes.logistic_path(
        x[~held_out], y[~held_out], num_classes, penalties
      )
      scores = [fit.accuracy(x[held_out], y[held_out]) for fit in path]
      best = int(np.argmax(scores))  # Of equal ones the strongest.
      path = probes.logistic_path(x, y, num_classes, penalties[: best + 1])
    final = path[-1]
    predicted = final.predict(split.test)
    score = plain(split.right(predicted))
    return Result(
      {
        "accuracy": score.mean(),
        "l2": float(penalties[best]),
        **split.counts,
      },
      {"l2": list(map(float, penalties)), "held_out_accuracy": scores},
      images=len(score.value),
      scores={"accuracy": score},
      rows=functools.partial(self._rows, split, predicted),
    )

  def _rows(self, split: Split, predicted: np.ndarray) -> Table:
    """Returns a row for each image of the test split."""
    return tables.classified(
      *(self.features.test, self.features.num_images[1]),
      *(split.index, self.features.names),
      predicted=predicted,
      answers=split.answers[:, None],
      right=predicted == split.answers,
    )
