"""Rows of embeddings: made batch by batch, averaged, turned into scores.

Shape letters: N rows, E width of an embedding.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from big_siglip.evaluators.classification import classifier as class_vectors
from big_siglip.evaluators.embed import Embed
from big_siglip.schema.sizes import resolve_image
from big_siglip.trained import inputs


def embed_rows(
  embed: Embed,
  params: Any,
  rows: Iterable[np.ndarray],
  size: int,
  shape: tuple[int, ...],
  add: Callable[[int], None],
) -> np.ndarray:
  """Returns N... float32: each row embedded.

  Args:
    embed: embeds a batch.
    params: the model's parameters.
    rows: what a tower sees, one after the other.
    size: rows of a batch.
    shape: of what comes out for one row.
    add: is told how many more are done.
  """
  parts = []
  for batch, count in inputs.padded(rows, size):
    parts.append(np.asarray(embed(params, batch, {})[0])[:count])
    add(count)
  if not parts:
    return np.zeros((0, *shape), np.float32)
  return np.concatenate(parts)


def row_shape(model: ConfigDict, *, tokens: bool) -> tuple[int, ...]:
  """Returns the shape of an embedding, or of an image's tokens."""
  size = resolve_image(model.image)
  if tokens:
    return (model.image.image_size // size.patch_size) ** 2, size.width
  return (model.embed_dim or size.width,)


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
