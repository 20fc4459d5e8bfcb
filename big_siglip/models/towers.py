"""What a model sees in a batch: the face that terms of a loss look at.

Shape letters: B batch, L tokens, D width, E embedding.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


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


# (params, batch) -> Seen, of "image" (or "image_embedding"), "text" and
# "image_mask", each of which may be missing.
Look = Callable[[Any, Mapping[str, jax.Array]], Seen]
