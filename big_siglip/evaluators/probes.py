"""Linear classifiers on frozen features: few-shot, and on a whole data set.

Shape letters: N examples, D feature width, C classes, S shots.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

_BIAS = 100.0  # A constant feature so large that its weight is hardly damped.
_MIN_STD = 1e-5
_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-6  # Of the gradient's largest entry.


class Standard(NamedTuple):
  """What makes training features of mean 0 and deviation 1."""

  mean: np.ndarray
  deviation: np.ndarray

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """Returns standardised ND features."""
    return (features - self.mean) / self.deviation


def standard(features: np.ndarray) -> Standard:
  """Returns the standardisation of ND features, in their dtype."""
  return Standard(features.mean(axis=0), features.std(axis=0) + _MIN_STD)


def choose_shots(
  labels: np.ndarray, num_classes: int, seed: int
) -> list[np.ndarray]:
  """Returns for each class its examples in random order: the first S are shots.

  The order depends on seed and labels alone, as in big_vision.

  Args:
    labels: N, in [0, C).
    num_classes: C.
    seed: of the order.
  """
  rng = np.random.default_rng(seed)
  return [
    rng.permutation(np.flatnonzero(labels == number))
    for number in range(num_classes)
  ]


def least_squares(
  features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float
) -> "Linear":
  """Returns the classifier that regresses -1 and 1 on standardised features.

  Closed form, with the same standardisation, bias and meaning of `l2` as
  big_vision's fewshot_lsr, in float64: (X'X + l2 I)^-1 X'Y, or X'(XX' + l2
  I)^-1 Y where that is smaller.

  Args:
    features: ND.
    labels: N.
    num_classes: C.
    l2: the damping, above 0.
  """
  scale = standard(features.astype(np.float64))
  x = np.pad(scale(features), ((0, 0), (0, 1)), constant_values=_BIAS)
  y = 2.0 * (labels[:, None] == np.arange(num_classes)) - 1.0
  if len(x) >= x.shape[1]:
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
  else:
    weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)
  return Linear(scale, weights[:-1], weights[-1] * _BIAS)


class Linear(NamedTuple):
  """A linear classifier.

  Attributes:
    scale: what the features go through first.
    weights: DC.
    bias: C.
  """

  scale: Standard
  weights: np.ndarray
  bias: np.ndarray

  def scores(self, features: np.ndarray) -> np.ndarray:
    """Returns NC scores of ND features."""
    return self.scale(features) @ self.weights + self.bias

  def predict(self, features: np.ndarray) -> np.ndarray:
    """Returns N classes of highest score; -1 for features not finite."""
    finite = np.isfinite(features).all(axis=1)
    return np.where(finite, self.scores(features).argmax(axis=1), -1)

  def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of rows whose highest score is their label's."""
    return float(np.mean(self.predict(features) == labels))


def logistic_path(
  features: np.ndarray,
  labels: np.ndarray,
  num_classes: int,
  penalties: Sequence[float],
  used: np.ndarray | None = None,
) -> list[Linear]:
  """Returns a logistic regression for each penalty, strongest first.

  Each minimises mean cross-entropy + l2 / 2 * the sum of squared weights (the
  bias is free) over standardised features, by L-BFGS in float32 on one device,
  and starts where the one before ended. In scikit-learn's terms C = 1 / (N l2).

  Args:
    features: ND.
    labels: N.
    num_classes: C.
    penalties: values of l2, above 0; each once.
    used: N bool, the rows that count; None: all. Fits to several choices of
      the same rows are compiled once.
  """
  used = np.ones(len(labels), bool) if used is None else used
  features = features.astype(np.float32)
  scale = standard(features[used])
  x = jnp.asarray(scale(features))
  y = jnp.asarray(labels)
  share = jnp.asarray(used / used.sum(), jnp.float32)
  params = (
    jnp.zeros((x.shape[1], num_classes), jnp.float32),
    jnp.zeros(num_classes, jnp.float32),
  )
  fitted = []
  for l2 in sorted(penalties, reverse=True):
    params = _fit(params, x, y, share, jnp.float32(l2))
    fitted.append(Linear(scale, *jax.device_get(params)))
  return fitted


@jax.jit
def _fit(start, x, y, share, l2):
  """Returns the minimum of the penalised loss, from `start` on.

  `share` is N, what each row counts, of sum 1.
  """

  def loss(params):
    weights, bias = params
    scores = jnp.einsum("ND,DC->NC", x, weights, precision="highest")
    scores += bias[None]
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
      scores, y
    )
    return (share * cross_entropy).sum() + 0.5 * l2 * (weights**2).sum()

  optimizer = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def going_on(carry):
    _, _, gradient, step = carry
    largest = jnp.max(
      jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient)])
    )
    return (step < _MAX_ITERATIONS) & (largest > _TOLERANCE)

  def improve(carry):
    params, state, _, step = carry
    value, gradient = value_and_grad(params, state=state)
    updates, state = optimizer.update(
      gradient, state, params, value=value, grad=gradient, value_fn=loss
    )
    params = optax.apply_updates(params, updates)
    return params, state, optax.tree.get(state, "grad"), step + 1

  carry = (start, optimizer.init(start), jax.grad(loss)(start), 0)
  return jax.lax.while_loop(going_on, improve, carry)[0]
