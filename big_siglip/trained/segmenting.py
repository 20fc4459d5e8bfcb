"""Labels against every pixel of an image, without training.

Shape letters: h x w the grid of patches, E embedding, H and W pixels, T labels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from big_siglip.data import images as image_data
from big_siglip.errors import UserError
from big_siglip.evaluators.prompts import fill_templates
from big_siglip.trained import inputs
from big_siglip.trained.patches import Look
from big_siglip.trained.vectors import sigmoid

KINDS = ("text", "value")  # Patches that texts can be compared with.


def label_vectors(
  model: Any, labels: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
  """Returns TE: the unit vector of each label.

  Args:
    model: an `inference.Model`.
    labels: what to look for.
    templates: sentences around a label, with "{}".

  Raises:
    UserError: there are none, or one is empty, or there is no text tower.
  """
  inputs.check_list(labels, "labels")
  labels = list(labels)
  if not labels:
    raise UserError("labels=[]: must be at least one")
  for number, label in enumerate(labels):
    if not isinstance(label, str) or not label.strip():
      raise UserError(
        f"labels[{number}]={label!r}: must be text, and not empty"
      )
  inputs.check_list(templates, "templates")
  for number, template in enumerate(templates):
    if not isinstance(template, str) or "{}" not in template:
      raise UserError(
        f"templates[{number}]={template!r}: must hold {{}}, where a label comes"
      )
  return model.embed_classes(
    fill_templates(list(templates), [(label,) for label in labels], False)
  )


def segment(
  look: Look,
  images: Iterable[inputs.ImageLike],
  texts: np.ndarray,
  scale: float,
  bias: float,
  batch_size: int | None,
) -> Iterator[np.ndarray]:
  """Yields HWT float32 of each image, in its own size; see `Dense.segment`.

  Logits are interpolated between patches, then made probabilities.
  """
  if batch_size is not None:
    batch_size = inputs.check_batch_size(batch_size)
  sizes: list[tuple[int, int]] = []

  def prepare(image: inputs.ImageLike) -> np.ndarray:
    data = inputs.read_image(image)
    if isinstance(data, bytes):
      width, height = image_data.size_of(data)
      seen = look.prepare(data)  # Says what is wrong with it.
    else:
      (height, width), seen = data.shape[:2], look.prepare(data)
    sizes.append((height or 0, width or 0))
    return seen

  rows = inputs.each(images, "images", prepare)
  for number, grid in enumerate(look(rows, batch_size)):
    logits = patch_logits(grid, texts, scale, bias)
    pixels = look.grid.to_pixels(logits, *sizes[number])
    yield sigmoid(pixels)


def patch_logits(
  grid: np.ndarray, texts: np.ndarray, scale: float, bias: float
) -> np.ndarray:
  """Returns hwT float32: each patch is asked about each text, as an image is.

  Args:
    grid: hwE float32, patches in the space of the texts, of length 1.
    texts: TE float32, of length 1.
    scale: the multiplier of a cosine.
    bias: what is added to it.
  """
  return (scale * (grid @ texts.T) + bias).astype(np.float32)


def counted(
  values: Iterable[np.ndarray], add: Callable[[int], None]
) -> Iterator[np.ndarray]:
  """Yields all values, and tells of each."""
  for value in values:
    yield value
    add(1)
