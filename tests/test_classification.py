"""The zero-shot classifier against a plain loop, and bad templates."""

import numpy as np
import pytest
from sklearn import metrics

from big_siglip.errors import UserError
from big_siglip.evaluators.classification import (
  classifier,
  fill_templates,
  nearest_class,
)


def test_classifier_averages_unit_vectors_and_normalises_again():
  prompts = np.array(
    [[[2.0, 0.0], [0.0, 5.0]], [[-1.0, 0.0], [-3.0, 0.0]]], np.float32
  )
  half = 0.5**0.5
  np.testing.assert_allclose(
    classifier(prompts), [[half, half], [-1.0, 0.0]], rtol=1e-6
  )


def test_nearest_class_equals_a_plain_loop():
  rng = np.random.default_rng(2)
  images = rng.normal(size=(50, 6)).astype(np.float32)
  prompts = rng.normal(size=(5, 3, 6)).astype(np.float32)
  labels = rng.integers(5, size=50)
  predicted = nearest_class(images, classifier(prompts))
  expected = []
  for image in images.astype(np.float64):
    cosines = []
    for templates in prompts.astype(np.float64):
      mean = np.mean([t / np.linalg.norm(t) for t in templates], axis=0)
      cosines.append(
        image @ mean / (np.linalg.norm(image) * np.linalg.norm(mean))
      )
    expected.append(np.argmax(cosines))
  np.testing.assert_array_equal(predicted, expected)
  assert metrics.accuracy_score(labels, expected) == np.mean(
    predicted == labels
  )


def test_embedding_that_is_not_a_number_belongs_to_no_class():
  images = np.array([[np.nan, 1.0], [0.0, 1.0]], np.float32)
  predicted = nearest_class(images, np.eye(2, dtype=np.float32))
  np.testing.assert_array_equal(predicted, [-1, 1])


def test_templates_are_filled_class_by_class():
  assert fill_templates(("a {}.", "{}!"), ("cat", "{x}")) == [
    "a cat.",
    "cat!",
    "a {x}.",
    "{x}!",
  ]


@pytest.mark.parametrize(
  ("templates", "names", "message"),
  [
    (("a photo",), ("cat",), "'a photo': must have '{}' exactly once"),
    (("{} or {}",), ("cat",), "'{} or {}': must have"),
    ((), ("cat",), "must be a tuple of at least one"),
    ("a {}.", ("cat",), "must be a tuple of at least one"),
    (("a {}.",), (), "the list of classes is empty"),
  ],
)
def test_bad_templates_and_classes_are_named(templates, names, message):
  with pytest.raises(UserError, match=message):
    fill_templates(templates, names)
