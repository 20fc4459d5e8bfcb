"""A view of masks: the classes of the very pixels that another view shows."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from big_siglip.data import images, masks
from big_siglip.data.batch import Batch, Field, Fields
from big_siglip.data.views.pixels import Pixels
from big_siglip.data.views.view import Sample, Streams
from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class Masks:
  """Cuts, mirrors and resizes masks as `pixels` does their images.

  Classes stay what they are (`masks.resize`). What lies outside the image, and
  an image without a mask, is `masks.IGNORED`.

  Attributes:
    pixels: the view of the images.
    key: of the field that holds the masks, among `config.data.fields`.
    array: the name of the array that it makes, uint8 [n, size, size].
  """

  pixels: Pixels
  key: str = "mask"
  array: str = "mask"

  @property
  def name(self) -> str:
    """That of the images' view, so that both draw the same."""
    return self.pixels.name

  def fields(self, batch: int) -> Fields:
    """See `View`."""
    del batch
    size = self.pixels.size
    return {self.array: Field((size, size), "uint8")}

  def scale(
    self, height: int, width: int, rng: np.random.Generator
  ) -> float | None:
    """See `ImageView`."""
    return self.pixels.scale(height, width, rng)

  def __call__(
    self,
    examples: Sequence[Sample],
    rngs: Sequence[np.random.Generator] | Streams,
    out: Batch,
  ) -> dict[int, BadExample]:
    """See `View`."""
    bad: dict[int, BadExample] = {}
    for i, example in enumerate(examples):
      try:
        self._write(example, rngs[i], out[self.array][i])
      except images.BadImage as error:
        bad[i] = error
    return bad

  def _write(self, example: Sample, rng, out: np.ndarray) -> None:
    value = example.fields[self.key]
    if value is None:
      out[:] = masks.IGNORED
      return
    mask = masks.decode(value)
    height, width = example.image.shape()
    if mask.shape != (height, width):
      raise images.BadImage(
        f"its mask is {mask.shape[1]}x{mask.shape[0]} pixels, and the image "
        f"{width}x{height}"
      )
    box, mirrored = self.pixels.geometry(height, width, rng)
    out[:] = masks.resize(mask, len(out), out.shape[1], box)
    if mirrored:
      out[:] = out[:, ::-1].copy()
