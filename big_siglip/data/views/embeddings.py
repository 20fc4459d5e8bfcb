"""A view of images that were embedded before: they stay as they are."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from big_siglip.data.batch import Batch, Field, Fields
from big_siglip.data.views.view import Sample, Streams
from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Takes what `sources.embedded` gives in an image's place.

  Attributes:
    width: of an embedding.
    name: of the array that it makes, float32 [n, width].
  """

  width: int
  name: str = "image_embedding"

  def fields(self, batch: int) -> Fields:
    """See `View`."""
    del batch
    return {self.name: Field((self.width,), "float32")}

  def __call__(
    self,
    examples: Sequence[Sample],
    rngs: Sequence[np.random.Generator] | Streams,
    out: Batch,
  ) -> dict[int, BadExample]:
    """See `View`."""
    del rngs
    for row, example in zip(out[self.name], examples, strict=True):
      row[:] = example.image.encoded
    return {}
