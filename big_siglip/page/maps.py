"""Where in an image a label fires: a score for each patch.

Shape letters: h x w the grid of patches, T labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from big_siglip.data.images import BadImage
from big_siglip.models.patches import of_texts, Patches
from big_siglip.page.scorer import File, Scorer
from big_siglip.trained.inference import Model
from big_siglip.trained.patches import Look
from big_siglip.trained.segmenting import patch_logits


def offered(model: Model) -> dict[str, Any]:
  """Returns {"grid": [h, w]}; [N], at most, where images keep their shape."""
  return {"grid": [*_look(model).shape[:-1]]}


def draw(
  scorer: Scorer,
  file: File,
  labels: tuple[tuple[str, ...], ...],
  which: Sequence[int],
) -> dict[str, Any]:
  """Returns what `Model.segment` asks each patch, before it is enlarged.

  Args:
    scorer: embeds.
    file: one image.
    labels: the names of each.
    which: numbers of the labels that are drawn, T.

  Returns:
    "name" and "labels"; "size", the image's width and height; "sigmoid",
    whether that of a logit means something; "logits" Thw; "box", what the
    patches cover: left, top, right and bottom as shares of width and height,
    which may reach beyond 0 and 1. Or "name" and "error".

  Raises:
    UserError: a label's embedding is not finite.
  """
  model = scorer.model
  look = _look(model)
  try:
    image = scorer.decode(file)
    seen = look.prepare(image)
  except BadImage as error:
    return {"name": file.name, "error": str(error)}
  texts = scorer.classes(labels)[list(which)]
  with scorer.watch("maps", 1):
    (grid,) = look([seen], 1)
  logits = patch_logits(grid, texts, model.logit_scale, model.logit_bias)
  if not np.isfinite(logits).all():
    return {"name": file.name, "error": "its patches are not finite"}
  height, width = image.shape[:2]
  box = np.array(look.grid.box(height, width)) / ([width, height] * 2)
  return {
    "name": file.name,
    "labels": [labels[number][0] for number in which],
    "sigmoid": scorer.has_sigmoid,
    "size": [width, height],
    "box": box.round(6).tolist(),
    "logits": np.moveaxis(logits, -1, 0).astype(float).round(4).tolist(),
  }


def _look(model: Model) -> Look:
  return model.look(Patches(of_texts(model.config.model.image)))
