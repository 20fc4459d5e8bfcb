"""Linear probes against plain numpy and scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from big_siglip.evaluators import probes


def make_data(seed, count, width=6, classes=4):
  rng = np.random.default_rng(seed)
  centers = np.random.default_rng(9).normal(size=(classes, width))
  labels = rng.integers(classes, size=count)
  noise = rng.normal(size=(count, width))
  return (3 + centers[labels] + noise).astype(np.float32), labels


@pytest.mark.parametrize("count", [4, 60])  # Fewer examples than features, too.
def test_least_squares_equals_ridge(count):
  x, y = make_data(0, count)
  x_test, _ = make_data(1, 50)
  fitted = probes.least_squares(x, y, 4, l2=8.0)
  mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + 1e-5
  ones = 100.0 * np.ones((count, 1))
  design = np.concatenate([(x - mean) / std, ones], axis=1)
  ridge = Ridge(alpha=8.0, fit_intercept=False).fit(
    design, 2.0 * np.eye(4)[y] - 1
  )
  design = np.concatenate(
    [(x_test - mean) / std, 100.0 * np.ones((50, 1))], axis=1
  )
  np.testing.assert_allclose(
    fitted.scores(x_test), ridge.predict(design), atol=1e-6
  )


def test_shots_are_random_by_seed_and_of_their_class():
  labels = np.array([0, 1, 0, 2, 0, 1])
  first, again, other = (
    probes.choose_shots(labels, 4, seed) for seed in (0, 0, 1)
  )
  assert [sorted(c) for c in first] == [[0, 2, 4], [1, 5], [3], []]
  assert [list(c) for c in first] == [list(c) for c in again]
  assert any(list(a) != list(b) for a, b in zip(first, other, strict=True))


def test_logistic_path_equals_scikit_learn():
  x, y = make_data(2, 300)
  x_test, y_test = make_data(3, 400)
  penalties = (1e-3, 1e-1)
  path = probes.logistic_path(x, y, 4, penalties)
  scaled = probes.standard(x)(x)
  for fitted, l2 in zip(path, sorted(penalties, reverse=True), strict=True):
    expected = LogisticRegression(
      C=1 / (300 * l2), tol=1e-10, solver="newton-cholesky"
    )
    expected.fit(scaled.astype(np.float64), y)
    # A common shift of all classes changes no probability.
    scores = fitted.scores(x_test)
    theirs = expected.decision_function(fitted.scale(x_test))
    np.testing.assert_allclose(
      scores - scores.mean(1, keepdims=True),
      theirs - theirs.mean(1, keepdims=True),
      rtol=1e-4,
      atol=1e-3,  # The gradient of 1e-6 over the least penalty.
    )
    accuracy = fitted.accuracy(x_test, y_test)
    assert accuracy == np.mean(theirs.argmax(1) == y_test)
    assert 0.5 < accuracy < 1
