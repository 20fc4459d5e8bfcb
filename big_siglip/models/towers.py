"""What a model sees in a batch: the face that terms of a loss look at.

Shape letters: B batch, L tokens, D width, E embedding; N places of a sequence
of patches, p pixels along a patch's side.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

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
    image_pooled: BD, what is pooled of images before a head, in the dtype of
      the computation; None as of `image`, and where images were embedded
      before.
  """

  image: jax.Array | None = None
  text: jax.Array | None = None
  image_tokens: jax.Array | None = None
  text_tokens: jax.Array | None = None
  image_mask: jax.Array | None = None
  image_pooled: jax.Array | None = None


class Hidden(NamedTuple):
  """Patches of images in whose place, once embedded, a learned vector stands.

  Positions are added after that, as in BEiT (arXiv:2106.08254).

  Attributes:
    patches: BL bool, true for those that are not shown.
    token: D, the vector.
  """

  patches: jax.Array
  token: jax.Array


class Look(Protocol):
  """What a model with given parameters sees of a batch."""

  def __call__(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    hidden: Hidden | None = None,
    keep: bool = False,
  ) -> Seen:
    """Returns what is seen.

    Args:
      params: of the model; others beside them are left alone.
      batch: "image" (or "image_embedding", or "patches" and "grid"), "text"
        and "image_mask", each of which may be missing. Images may be of any
        size, by whole patches.
      hidden: patches that are not shown; None: none are.
      keep: whether all blocks keep their activations, whatever
        `config.model.remat` says.
    """
    ...


def image_of(batch: Mapping[str, jax.Array]) -> Image | None:
  """Returns what a batch holds for the image tower; None: nothing."""
  if SEQUENCE[0] in batch:
    return {name: batch[name] for name in SEQUENCE}
  return batch.get("image_embedding", batch.get("image"))


def is_embedded(image: Image) -> bool:
  """Returns whether a tower made embeddings of images before."""
  return not isinstance(image, Mapping) and image.ndim == 2
