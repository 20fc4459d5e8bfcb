"""Sums over all pairs: calibration and loss health against plain numpy."""

from evaluator_cases import unit
import jax
import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from big_siglip.evaluators import calibration, pairs
from big_siglip.evaluators.health import expected_duplicates

SCALE, BIAS = 9.0, -4.0


@pytest.fixture(params=[1024, 16], ids=["one block", "many"])
def some_pairs(request, monkeypatch):
  """40 images with 1 to 3 captions each, that resemble them."""
  monkeypatch.setattr(pairs, "_ROWS", request.param)
  rng = np.random.default_rng(0)
  image = unit(rng.normal(size=(40, 8))).astype(np.float32)
  ids = np.arange(40) * 2 + 1
  text_ids = rng.permutation(np.repeat(ids, rng.integers(1, 4, 40)))
  text = unit(
    image[(text_ids - 1) // 2] + 0.5 * rng.normal(size=(len(text_ids), 8))
  ).astype(np.float32)
  return pairs.Pairs(image, ids, text, text_ids)


def plain(some_pairs):
  """Returns flat cosines and labels of all pairs."""
  cosines = some_pairs.image.astype(np.float64) @ some_pairs.text.T
  labels = some_pairs.image_ids[:, None] == some_pairs.text_ids
  return cosines.ravel(), labels.ravel()


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("prior", [None, 0.3])
def test_measures_equal_scikit_learns(some_pairs, prior):
  cosines, labels = plain(some_pairs)
  assert some_pairs.num_positive == labels.sum()
  assert some_pairs.num_negative == (~labels).sum()
  weights = calibration.weigh(some_pairs, prior)
  got, curve = calibration.measure(some_pairs, weights, SCALE, BIAS)
  p = sigmoid(SCALE * cosines + BIAS)
  each = np.where(labels, weights.positive, weights.negative)
  assert each.sum() == pytest.approx(1)
  share = labels.mean() if prior is None else prior
  assert each[labels].sum() == pytest.approx(share)
  expected = brier_score_loss(labels, p, sample_weight=each)
  assert got["brier"] == pytest.approx(expected, rel=1e-5)
  expected = log_loss(labels, p, sample_weight=each)
  assert got["log_loss"] == pytest.approx(expected, rel=1e-5)
  bins = np.minimum((p * 15).astype(int), 14)
  ece = sum(abs((each * (p - labels))[bins == b].sum()) for b in range(15))
  assert got["ece"] == pytest.approx(ece, rel=1e-5)
  assert curve["count"] == np.bincount(bins, minlength=15).tolist()
  if prior is None:
    observed, predicted = calibration_curve(labels, p, n_bins=15)
    filled = [b for b in range(15) if curve["count"][b]]
    np.testing.assert_allclose([curve["observed"][b] for b in filled], observed)
    np.testing.assert_allclose(
      [curve["predicted"][b] for b in filled], predicted, rtol=1e-5
    )


@pytest.mark.parametrize("prior", [None, 0.3])
def test_refit_equals_logistic_regression(some_pairs, prior):
  cosines, labels = plain(some_pairs)
  weights = calibration.weigh(some_pairs, prior)
  scale, bias = calibration.fit(some_pairs, weights, (SCALE, BIAS))
  each = np.where(labels, weights.positive, weights.negative)
  expected = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky")
  expected.fit(cosines[:, None], labels, sample_weight=each * len(each))
  assert scale == pytest.approx(expected.coef_[0, 0], rel=1e-3)
  assert bias == pytest.approx(expected.intercept_[0], rel=1e-3)
  # From elsewhere, the same minimum.
  again = calibration.fit(some_pairs, weights, (30.0, -20.0))
  np.testing.assert_allclose(again, (scale, bias), rtol=1e-3)
  before, _ = calibration.measure(some_pairs, weights, SCALE, BIAS)
  after, _ = calibration.measure(some_pairs, weights, scale, bias)
  assert after["log_loss"] < before["log_loss"]


def test_refit_of_pairs_that_a_threshold_tells_apart_ends():
  image = np.eye(4, dtype=np.float32)
  ids = np.arange(4)
  apart = pairs.Pairs(image, ids, image, ids)
  weights = calibration.weigh(apart, 0.5)
  scale, bias = calibration.fit(apart, weights, (10.0, -5.0))
  got, _ = calibration.measure(apart, weights, scale, bias)
  assert np.isfinite([scale, bias]).all()
  assert got["log_loss"] < 1e-5


def test_halves_share_no_image_and_no_caption(some_pairs):
  some_pairs = pairs.Pairs(
    some_pairs.image,
    some_pairs.image_ids // 2,
    some_pairs.text,
    some_pairs.text_ids // 2,
  )
  halves = [some_pairs.part(number, 2) for number in (0, 1)]
  assert sum(len(half.text) for half in halves) == len(some_pairs.text)
  for number, half in enumerate(halves):
    assert set(half.text_ids) == set(half.image_ids)
    assert all(half.image_ids % 2 == number)


def test_expected_duplicates_equal_those_of_drawn_batches():
  rng = np.random.default_rng(0)
  choices = [["a"], ["a", "b"], ["b"], ["c", "c", "a"], ["d"], ["e"], ["a"]]
  found = []
  for _ in range(20_000):
    batch = rng.permutation(7)[:4]
    drawn = [choices[i][rng.integers(len(choices[i]))] for i in batch]
    counts = np.unique(drawn, return_counts=True)[1]
    found.append((counts * (counts - 1) / 2).sum())
  expected = expected_duplicates(choices, 4)
  error = np.std(found) / len(found) ** 0.5
  assert abs(expected - np.mean(found)) < 4 * error
  assert expected > 0.5
  assert expected_duplicates([["a"], ["b"]], 2) == 0
  assert expected_duplicates([["a"]] * 10, 5) == pytest.approx(10)


def test_sums_are_compiled_once_for_each_statistic(some_pairs):
  jax.clear_caches()
  some_pairs.sum(calibration._newton, 1.0, 2.0, 0.0, 0.0)
  compiled = pairs._evaluate._cache_size()
  some_pairs.sum(calibration._newton, 3.0, 4.0, 0.0, 0.0)
  assert pairs._evaluate._cache_size() == compiled == 1
