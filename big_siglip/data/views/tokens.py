"""A view of texts: the token ids of one text of each example."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from big_siglip.data.batch import Batch, Field, Fields
from big_siglip.data.text import Tokenizer
from big_siglip.data.views.view import Sample, Streams
from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Draws one of an example's texts, by their weights, and tokenizes it.

  Attributes:
    tokenizer: (texts, length) -> int32 [len(texts), length]; None where its
      fields alone are wanted.
    length: tokens.
    name: of the array that it makes, int32 [n, length].
  """

  tokenizer: Tokenizer | None
  length: int
  name: str = "text"

  def fields(self, batch: int) -> Fields:
    """See `View`."""
    del batch
    return {self.name: Field((self.length,), "int32")}

  def __call__(
    self,
    examples: Sequence[Sample],
    rngs: Sequence[np.random.Generator] | Streams,
    out: Batch,
  ) -> dict[int, BadExample]:
    """See `View`."""
    texts = [draw_text(e, rngs, i) for i, e in enumerate(examples)]
    if self.tokenizer is None:
      raise TypeError("these tell their fields alone: they have no tokenizer")
    out[self.name][:] = self.tokenizer(texts, self.length)
    return {}


def draw_text(
  example: Sample, rngs: Sequence[np.random.Generator] | Streams, i: int
) -> str:
  """Returns one of an example's texts, by their weights, drawn from rngs[i]."""
  texts, weights = example.texts, example.weights
  if len(texts) == 1:
    return texts[0]
  rng = rngs[i]
  if weights:
    return texts[rng.choice(len(texts), p=weights)]
  return texts[rng.integers(len(texts))]
