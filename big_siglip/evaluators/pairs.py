"""All pairs of images and texts in blocks: sums over what is never held.

Shape letters: N images, M texts, n and m rows of a block, D embedding width.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_siglip.errors import UserError
from big_siglip.evaluators.embed import Embedders, Rows
from big_siglip.evaluators.result import counted
from big_siglip.evaluators.retrieval import Captions

_ROWS = 1024  # Of a block, both ways: 4 MiB of cosines.
_MULTIPLE = 64  # Fewer rows are filled up to one of it.

# (cosines nm, is a pair nm bool, counts nm bool, arguments ...) -> sums.
Statistic = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Embeddings of images and texts, and which belong together.

  Attributes:
    image: ND float32 unit vectors.
    image_ids: N; those of several images may be one, such as their class.
    text: MD.
    text_ids: M, the id of the images that each describes.
  """

  image: np.ndarray
  image_ids: np.ndarray
  text: np.ndarray
  text_ids: np.ndarray

  def part(self, number: int, parts: int) -> "Pairs":
    """Returns the images whose id leaves this remainder, and their texts."""
    image = self.image_ids % parts == number
    text = self.text_ids % parts == number
    return Pairs(
      self.image[image], self.image_ids[image], self.text[text],
      self.text_ids[text],
    )  # fmt: skip

  @property
  def num_positive(self) -> int:
    """How many pairs belong together."""
    images, texts = (
      np.unique(own, return_counts=True)
      for own in (self.image_ids, self.text_ids)
    )
    _, i, t = np.intersect1d(images[0], texts[0], True, return_indices=True)
    return int(images[1][i] @ texts[1][t])

  @property
  def num_negative(self) -> int:
    """How many do not."""
    return len(self.image) * len(self.text) - self.num_positive

  def sum(self, statistic: Statistic, *arguments: Any) -> Any:
    """Returns a statistic summed over all pairs, in float64 on the host.

    Args:
      statistic: a function of a block's cosines, of which of them belong
        together, of which count at all (the rest is padding), and of the
        arguments. It returns a tree of arrays to add up. One function object
        is compiled once.
      *arguments: numbers, given as float32.
    """
    scalars = [np.float32(argument) for argument in arguments]
    texts = list(_blocks(self.text, self.text_ids))
    total = None
    for image in _blocks(self.image, self.image_ids):
      for text in texts:
        sums = _evaluate(statistic, *image, *text, *scalars)
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    return total


def embed_pairs(
  embedders: Embedders,
  params: Any,
  images: Rows,
  captions: Captions,
  labels: tuple[str, ...] = (),
) -> tuple[Pairs, dict[str, np.ndarray], dict[str, float]]:
  """Embeds a data set; a caption of an unreadable image is left out.

  So is what is not finite, and the captions of such an image.

  Args:
    embedders: embed images and texts.
    params: the model's parameters.
    images: padded batches with "image", "index", "mask" and `labels`.
    captions: of the images.
    labels: keys of further values of the images to return.

  Returns:
    The pairs; {"index": [N], ...}; how many images were "read", and how many
    embeddings are "nonfinite", if any.

  Raises:
    UserError: no image, or no text, has a finite embedding.
  """
  image, values = images.embed(embedders.image, params, labels)
  text, of_text = captions.texts.embed(embedders.text, params)
  text_ids = captions.images[of_text["index"]]
  readable = np.isin(text_ids, values["index"])
  nonfinite = int((~values["finite"]).sum())
  nonfinite += int((~of_text["finite"][readable]).sum())
  counts = {"read": float(len(image)), **counted(nonfinite)}
  good = values.pop("finite")
  image, values = image[good], {k: v[good] for k, v in values.items()}
  known = np.isin(text_ids, values["index"]) & of_text["finite"]
  if not len(image) or not known.any():
    raise UserError("config.evals: none of its embeddings is finite")
  pairs = Pairs(image, values["index"], text[known], text_ids[known])
  return pairs, values, counts


def _blocks(rows, ids) -> Iterator[tuple[jax.Array, jax.Array]]:
  """Yields padded blocks and their ids, on the device."""
  size = min(_ROWS, -(-len(rows) // _MULTIPLE) * _MULTIPLE)
  for start in range(0, len(rows), size):
    part = rows[start : start + size]
    missing = size - len(part)
    numbers = ids[start : start + size].astype(np.int32)
    yield (
      jnp.asarray(np.pad(part, ((0, missing), (0, 0)))),
      jnp.asarray(np.pad(numbers, (0, missing), constant_values=-1)),
    )


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(statistic, image, image_ids, text, text_ids, *arguments):
  cosines = jnp.einsum("nD,mD->nm", image, text, precision="highest")
  together = image_ids[:, None] == text_ids[None]
  counts = (image_ids >= 0)[:, None] & (text_ids >= 0)[None]
  return statistic(cosines, together & counts, counts, *arguments)
