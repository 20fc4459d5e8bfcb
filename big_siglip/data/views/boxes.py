"""Boxes in the frame of the very pixels that another view shows."""

import numpy as np

from big_siglip.data import boxes
from big_siglip.data.box_reading import Reader
from big_siglip.data.views.pixels import Pixels
from big_siglip.data.views.view import Sample


def seen_boxes(
  example: Sample,
  pixels: Pixels,
  reader: Reader,
  rng: np.random.Generator,
  min_visible: float = boxes.MIN_VISIBLE,
) -> boxes.Boxes:
  """Returns the boxes of an example in the frame that `pixels` shows of it.

  Where fractions of all of the image are asked for, nothing is decoded; else
  ask within an `ImageView`, whose image others look at as well.

  Args:
    example: with the fields that `reader` names.
    pixels: the view of the image.
    reader: of its boxes.
    rng: a generator of `pixels`' stream, from its start: `Streams.of`.
    min_visible: see `boxes.transform`.

  Raises:
    BadBoxes: one of its boxes is not as it should be.
    BadImage: the image cannot be decoded.
  """
  if pixels.is_whole and reader.format == "yxyx":
    return reader(example.fields, 1, 1)
  height, width = example.image.shape()
  found = reader(example.fields, height, width)
  box, mirrored = pixels.geometry(height, width, rng)
  return boxes.transform(found, box, mirrored, height, width, min_visible)
