"""From embeddings to what is said of an image; numpy alone.

Shape letters: C classes, E embedding width.
"""

from collections.abc import Sequence

import numpy as np

from big_siglip.evaluators.classification import classifier as class_vectors


def of_classes(rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
  """Returns the unit vector of each class, from those of its texts.

  Args:
    rows: E float32 of each text, those of a class side by side.
    counts: how many texts each class has, 1 at least.
  """
  if len(counts) == len(rows):
    return rows
  return class_vectors(
    rows, np.repeat(np.arange(len(counts)), counts), len(counts)
  )


def sigmoid(logits: np.ndarray) -> np.ndarray:
  """Returns 1 / (1 + exp(-logits)), without overflow."""
  return np.exp(-np.logaddexp(0, -logits))
