"""Pairs that match without standing in the same row of a batch.

A caption that stands twice in a batch, or an image that does, makes pairs that
the plain losses call negative although they are as true as the matching ones:
false negatives. Ids tell which: example i and j are the same if one of their K
identities is, word for word; image i with text j != i is then a duplicate.

Shape letters: n examples of the whole batch, i images and j texts of a tile, L
tokens, K identities, W words of an identity.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from big_siglip.errors import UserError

DUPLICATES = ("ignore", "positive")


class Pairs(NamedTuple):
  """What a tile's pairs are; without ids, the first two are one.

  Attributes:
    positive: ij bool, the pairs that should match.
    known: ij bool, all that are not negative.
    ignored: ij bool, pairs that the loss does not see; None for no such pair.
    duplicate: ij bool, the duplicates; None where no ids tell.
  """

  positive: jax.Array
  known: jax.Array
  ignored: jax.Array | None = None
  duplicate: jax.Array | None = None

  def masked(self, x: jax.Array, silent: float = 0.0) -> jax.Array:
    """Returns ij `x`, or `silent` where the loss does not see a pair."""
    return x if self.ignored is None else jnp.where(self.ignored, silent, x)


def classify_pairs(
  matching: jax.Array,
  image_ids: jax.Array | None,
  text_ids: jax.Array | None,
  duplicates: str,
) -> Pairs:
  """Returns what each pair is.

  Args:
    matching: ij bool, the pairs of the same row of the batch.
    image_ids: iKW; None: there are no duplicates.
    text_ids: jKW.
    duplicates: "ignore" or "positive".
  """
  if image_ids is None or text_ids is None:
    return Pairs(matching, matching)
  same = jnp.zeros_like(matching)
  # Unrolled: comparisons of single numbers fuse with what is made of them.
  for identity in range(image_ids.shape[1]):
    equal = jnp.ones_like(matching)
    for word in range(image_ids.shape[2]):
      of_image = image_ids[:, identity, word]
      of_text = text_ids[:, identity, word]
      equal &= of_image[:, None] == of_text[None]
    same |= equal
  known, duplicate = matching | same, same & ~matching
  if duplicates == "positive":
    return Pairs(known, known, None, duplicate)
  return Pairs(matching, known, duplicate, duplicate)


def check_ids(
  ids: jax.Array | None, n: int, duplicates: str
) -> jax.Array | None:
  """Returns ids as [n, K, W], or None.

  Args:
    ids: integers [n], or [n, K, W]; None.
    n: examples of the whole batch.
    duplicates: what to do with them.

  Raises:
    UserError: another shape, or `duplicates` is not in `DUPLICATES`.
  """
  if ids is None:
    return None
  if duplicates not in DUPLICATES:
    raise UserError(
      f"duplicates={duplicates!r}: must be one of {', '.join(DUPLICATES)}"
    )
  if ids.ndim not in (1, 3) or len(ids) != n:
    raise UserError(
      f"ids of shape {ids.shape}: must be [n] or [n, K, W] with n={n}"
    )
  return ids.reshape(n, 1, 1) if ids.ndim == 1 else ids


def text_id(tokens: jax.Array) -> jax.Array:
  """Returns n(1)2 uint32, equal for equal texts; nL int32.

  Two hashes of 32 bits: of a billion pairs of different texts none is taken for
  equal, but with a chance of one in 18 billion. One hash would take one in
  four billion, which a batch of 32,768 would meet in every eighth step.
  """
  tokens = tokens.astype(jnp.uint32)
  places = jnp.arange(tokens.shape[1], dtype=jnp.uint32)
  words = []
  for seed in (0x9E3779B9, 0x7F4A7C15):
    salt = _mix(places * jnp.uint32(0x85EBCA6B) + jnp.uint32(seed))[None]
    hashed = _mix(tokens * jnp.uint32(0xC2B2AE35) ^ salt)
    words.append(_mix(hashed.sum(axis=1, dtype=jnp.uint32)))
  return jnp.stack(words, axis=-1)[:, None]


def image_id(index: jax.Array) -> jax.Array:
  """Returns n(1)2 uint32 of the images' numbers in their source; n integers."""
  index = index.astype(jnp.uint32)
  return jnp.stack([index, jnp.zeros_like(index)], axis=-1)[:, None]


def _mix(x: jax.Array) -> jax.Array:
  """The finalizer of MurmurHash3, a bijection of uint32."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
