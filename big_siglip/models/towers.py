"""What a model sees in a batch: the face that terms of a loss look at.

Shape letters: B batch, L tokens, D width, E embedding; N places of a sequence
of patches, p pixels along a patch's side.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

# BHW3, or sequences of patches: {"patches": BN(p p 3), "grid": B2 int32}, see
# `vision.ImageTower`; or BE, of a tower that embedded them before.
Image = jax.Array | Mapping[str, jax.Array]
SEQUENCE = ("patches", "grid")


class Seen(NamedTuple):
  """What both towers make of a batch; what nobody uses costs nothing.

  Attributes:
    image: BE float32 of length 1; None without images, or without a pool.
    text: the same of the texts.
    image_tokens: BLD after the final norm, before pooling, in the dtype of the
      computation; without a class token. None without an image tower.
    text_tokens: the same of the texts.
    image_mask: BL bool, true for real tokens of images; None: all are.
  """

  image: jax.Array | None = None
  text: jax.Array | None = None
  image_tokens: jax.Array | None = None
  text_tokens: jax.Array | None = None
  image_mask: jax.Array | None = None


# (params, batch) -> Seen, of "image" (or "image_embedding", or "patches" and
# "grid"), "text" and "image_mask", each of which may be missing.
Look = Callable[[Any, Mapping[str, jax.Array]], Seen]


def image_of(batch: Mapping[str, jax.Array]) -> Image | None:
  """Returns what a batch holds for the image tower; None: nothing."""
  if SEQUENCE[0] in batch:
    return {name: batch[name] for name in SEQUENCE}
  return batch.get("image_embedding", batch.get("image"))


def is_embedded(image: Image) -> bool:
  """Returns whether a tower made embeddings of images before."""
  return not isinstance(image, Mapping) and image.ndim == 2
