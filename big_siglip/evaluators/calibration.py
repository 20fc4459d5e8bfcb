"""Are the sigmoid's probabilities right? Reliability, and scale and bias refit.

For the pair of an image and a text the model says sigmoid(scale * cosine +
bias). Trained on batches of N, it has seen one right pair in N, so that its
probabilities are those of such a batch and no other; `prior` says of which mix
of pairs they should hold instead.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from big_siglip import progress
from big_siglip.errors import UserError
from big_siglip.evaluators.embed import Embedders, Rows
from big_siglip.evaluators.pairs import embed_pairs, Pairs
from big_siglip.evaluators.result import Result
from big_siglip.evaluators.retrieval import Captions

_BINS = 15  # Of equal width, as usual for the ECE (arXiv:1706.04599).
_MAX_STEPS = 100
_CONVERGED = 1e-7  # The gradient's largest entry, of a mean loss.
_LAST_STEPS = 2


class Weights(NamedTuple):
  """What a pair counts; all together count 1."""

  positive: float
  negative: float


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Calibration over all pairs of a data set's images and captions.

  Images of odd number measure; those of even number (and their own captions)
  fit scale and bias anew, so that the refit is measured on pairs it never saw.

  Attributes:
    images: padded batches with "image", "index" and "mask".
    captions: of the images.
    num_images: how many there are, with those that cannot be read.
    embedders: embed images and texts, and know scale and bias.
    prior: the share of right pairs to weigh for, in (0, 1); None for that of
      the data, where every pair counts the same.
  """

  images: Rows
  captions: Captions
  num_images: int
  embedders: Embedders
  prior: float | None

  def __call__(self, params: Any) -> Result:
    """Returns "ece", "brier", "log_loss", "scale", "bias", and "refit/..." too.

    "prior" is the share of right pairs, "skipped" the images that are none.

    Raises:
      UserError: a half of the data has no right or no wrong pair.
    """
    pairs, _, counts = embed_pairs(
      self.embedders, params, self.images, self.captions
    )
    fitting, measured = pairs.part(0, 2), pairs.part(1, 2)
    for half in (fitting, measured):
      if not half.num_positive or not half.num_negative:
        raise UserError(
          "config.evals: calibration needs at least four images with captions"
        )
    scale, bias = self.embedders.logits(params)
    with progress.waiting("fitting scale and bias"):
      refit = fit(fitting, weigh(fitting, self.prior), (scale, bias))
    weights = weigh(measured, self.prior)
    with progress.waiting("measuring all pairs"):
      before, curve = measure(measured, weights, scale, bias)
      after, curve_after = measure(measured, weights, *refit)
    metrics = {
      **before,
      **{f"refit/{name}": value for name, value in after.items()},
      "prior": weights.positive * measured.num_positive,
      "skipped": self.num_images - counts.pop("read"),
      **counts,
    }
    details = {"reliability": curve, "refit": curve_after}
    return Result(metrics, details, images=len(measured.image))


def weigh(pairs: Pairs, prior: float | None) -> Weights:
  """Returns the weights that give right pairs this share of the whole."""
  if prior is None:
    each = 1.0 / (pairs.num_positive + pairs.num_negative)
    return Weights(each, each)
  return Weights(prior / pairs.num_positive, (1.0 - prior) / pairs.num_negative)


def measure(
  pairs: Pairs, weights: Weights, scale: float, bias: float
) -> tuple[dict[str, float], dict[str, list]]:
  """Returns how well sigmoid(scale * cosine + bias) predicts the pairs.

  Returns:
    {"ece", "brier", "log_loss", "scale", "bias"}, and the reliability curve:
    for each bin of probability "weight" (its share), "predicted" and "observed"
    (means in the bin, None where it is empty), "count".
  """
  sums = pairs.sum(_scores, scale, bias)
  # [right or wrong, bin] each.
  weight = sums["count"] * np.array(weights)[:, None]
  predicted = (sums["probability"] * np.array(weights)[:, None]).sum(0)
  observed, total = weight[0], weight.sum(0)
  metrics = {
    "ece": float(np.abs(predicted - observed).sum()),
    "brier": float(sums["brier"] @ np.array(weights)),
    "log_loss": float(sums["log_loss"] @ np.array(weights)),
    "scale": float(scale),
    "bias": float(bias),
  }

  def mean(values):
    return [
      float(v / t) if t else None for v, t in zip(values, total, strict=True)
    ]

  return metrics, {
    "weight": total.tolist(),
    "predicted": mean(predicted),
    "observed": mean(observed),
    "count": sums["count"].sum(0).astype(int).tolist(),
  }


def fit(
  pairs: Pairs,
  weights: Weights,
  start: tuple[float, float],
  doubt: Weights | None = None,
) -> tuple[float, float]:
  """Returns the scale and bias of least weighted log loss on the pairs.

  A logistic regression on one number, the cosine: convex, so that Newton's
  method with halved steps finds the one minimum. Pairs that a threshold tells
  apart have none; then both numbers grow until the loss is as good as 0.

  Args:
    pairs: what to fit.
    weights: of right and wrong pairs.
    start: scale and bias.
    doubt: in [0, 1): which share of a right pair counts as wrong, and of a
      wrong one as right; see `doubt_of`. None: 0. Above it there is always a
      minimum.
  """
  doubt = doubt or Weights(0.0, 0.0)
  point = np.array(start, np.float64)
  loss, gradient, hessian = _slopes(pairs, weights, point, doubt)
  for _ in range(_MAX_STEPS):
    if np.abs(gradient).max() < _CONVERGED:
      break
    step = _newton_step(gradient, hessian)
    fraction = 1.0
    while fraction > 1e-4:
      tried = _slopes(pairs, weights, point - fraction * step, doubt)
      if tried[0] <= loss:
        break
      fraction /= 2
    else:
      break  # float32 sees no better place.
    point = point - fraction * step
    loss, gradient, hessian = tried
  # So near, whole steps go on where the loss itself shows no difference.
  for _ in range(_LAST_STEPS):
    point = point - _newton_step(gradient, hessian)
    _, gradient, hessian = _slopes(pairs, weights, point, doubt)
  return float(point[0]), float(point[1])


def doubt_of(pairs: Pairs) -> Weights:
  """Returns by how much few pairs are to be doubted, for `fit`.

  Of N right pairs that are seen, the next one is right with (N + 1) / (N + 2),
  by Laplace's rule of succession: Platt's targets for just this fit
  (Probabilistic Outputs for Support Vector Machines, 1999, section 2.2).
  """
  counts = (pairs.num_positive, pairs.num_negative)
  return Weights(*(1.0 / (count + 2) for count in counts))


def _newton_step(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
  damped = hessian + 1e-12 * np.trace(hessian) * np.eye(2)
  return np.linalg.solve(damped, gradient)


def _slopes(pairs, weights, point, doubt):
  """Returns loss, gradient [2] and Hessian [2, 2] at (scale, bias)."""
  loss, gradient, hessian = pairs.sum(_newton, *point, *doubt)
  w = np.array(weights)
  return loss @ w, gradient @ w, hessian @ w


def _newton(cosines, positive, counts, scale, bias, of_right, of_wrong):
  """Sums of loss and its slopes, over right pairs and over wrong ones."""
  logits = scale * cosines + bias
  sign = jnp.where(positive, 1.0, -1.0)
  doubt = jnp.where(positive, of_right, of_wrong)
  sure = 1.0 - doubt
  loss = -sure * jax.nn.log_sigmoid(sign * logits)
  loss -= doubt * jax.nn.log_sigmoid(-sign * logits)
  error = -sure * sign * jax.nn.sigmoid(-sign * logits)
  error += doubt * sign * jax.nn.sigmoid(sign * logits)
  curve = jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits)

  def total(values):
    both = (positive, counts & ~positive)
    return jnp.stack([jnp.where(mask, values, 0).sum() for mask in both])

  return (
    total(loss),
    jnp.stack([total(error * cosines), total(error)]),
    jnp.stack(
      [
        jnp.stack([total(curve * cosines**2), total(curve * cosines)]),
        jnp.stack([total(curve * cosines), total(curve)]),
      ]
    ),
  )


def _scores(cosines, positive, counts, scale, bias):
  """Sums by bin of probability, and scores, right and wrong pairs apart."""
  logits = scale * cosines + bias
  probability = jax.nn.sigmoid(logits)
  bins = jnp.clip((probability * _BINS).astype(jnp.int32), 0, _BINS - 1)
  sign = jnp.where(positive, 1.0, -1.0)
  both = jnp.stack([positive, counts & ~positive])  # 2nm

  def by_bin(values):
    # A scatter is slow on accelerators, and fifteen comparisons are not.
    return jax.lax.map(
      lambda b: jnp.where((bins == b)[None], values, 0).sum((1, 2)),
      jnp.arange(_BINS),
    ).T

  miss = jax.nn.sigmoid(-sign * logits)
  return {
    "count": by_bin(both.astype(jnp.int32)),
    "probability": by_bin(jnp.where(both, probability[None], 0)),
    "brier": jnp.where(both, (miss**2)[None], 0).sum((1, 2)),
    "log_loss": jnp.where(
      both, -jax.nn.log_sigmoid(sign * logits)[None], 0
    ).sum((1, 2)),
  }
