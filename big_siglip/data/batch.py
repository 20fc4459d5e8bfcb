"""What a batch holds, said once: its arrays by name, with shape and dtype.

The loader makes its buffers from it, and `sharding.abstract` what the compiler
is told. Numpy alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

Batch = dict[str, np.ndarray]
# What one image is to a tower: uint8 [H, W, 3], or the "patches" of it, uint8
# [N, p * p * 3], and their "grid", int32 [2]: rows and columns.
Image = np.ndarray | Mapping[str, np.ndarray]


class Field(NamedTuple):
  """One array of a batch, without its first dimension, the rows."""

  shape: tuple[int, ...]
  dtype: DTypeLike


# Such as {"image": Field((224, 224, 3), "uint8"), "text": ...}.
Fields = Mapping[str, Field]


def empty(fields: Fields, rows: int) -> Batch:
  """Returns arrays [rows, ...] for all fields; they hold anything."""
  return {
    name: np.empty((rows, *field.shape), field.dtype)
    for name, field in fields.items()
  }


def union(parts: Iterable[Fields]) -> Fields:
  """Returns the fields of all parts.

  Raises:
    ValueError: two of them have a field of the same name.
  """
  fields: dict[str, Field] = {}
  for part in parts:
    if twice := fields.keys() & part.keys():
      raise ValueError(f"two views make {', '.join(sorted(twice))} of a batch")
    fields |= part
  return fields


def rows_of(batch: Batch, rows: slice) -> Batch:
  """Returns views of some rows of all arrays."""
  return {name: array[rows] for name, array in batch.items()}


def stack(images: Sequence[Image]) -> Image:
  """Returns images as one array, or one for each name; all are of one kind."""
  parts = [image for image in images if isinstance(image, Mapping)]
  if parts:
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}
  return np.stack([np.asarray(image) for image in images])


def zeros_like(image: Image) -> Image:
  """Returns zeros in the shape of an image."""
  if isinstance(image, Mapping):
    return {name: np.zeros_like(array) for name, array in image.items()}
  return np.zeros_like(image)
