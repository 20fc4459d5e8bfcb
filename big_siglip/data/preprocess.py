"""From examples to what the model sees of them."""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from big_siglip.data import fast_images, images
from big_siglip.data.rows import Batch, Seed
from big_siglip.data.sources import Example
from big_siglip.data.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Decodes, augments and tokenizes examples; pure and picklable.

  Attributes:
    tokenizer: (texts, length) -> int32 [len(texts), length].
    image_size: side of the result in pixels.
    text_length: tokens.
    resize: "bilinear", "bicubic" or "big_vision".
    decoder: "pillow", exact, or "fast": see `fast_images`.
    crop_min_area: the least share of the area that a random crop keeps; 1.0
      for a plain squash of the whole image, as SigLIP does.
    flip: mirror every other image. Not for captions with left and right.
  """

  tokenizer: Tokenizer
  image_size: int
  text_length: int
  resize: str = "bilinear"
  decoder: str = "pillow"
  crop_min_area: float = 1.0
  flip: bool = False

  def __call__(
    self,
    examples: Sequence[Example],
    seeds: Sequence[Seed],
    out: Batch | None = None,
  ) -> tuple[Batch, dict[int, images.BadImage]]:
    """Returns rows, and which of them are no good: see `rows.Load`.

    The rows are "image" uint8 [n, H, W, 3], "text" int32 [n, text_length].
    Embedded images stay as they are, float32 [n, E].
    """
    rngs = list(map(self._rng, examples, seeds))
    texts = list(map(_draw_text, examples, rngs))
    tokens = self.tokenizer(texts, self.text_length)
    if out is not None:
      pixels = out["image"]
    elif isinstance(first := examples[0].image, np.ndarray):
      pixels = np.empty((len(examples), *first.shape), first.dtype)
    else:
      size = self.image_size
      pixels = np.empty((len(examples), size, size, 3), np.uint8)
    bad = {}
    for i, (example, rng) in enumerate(zip(examples, rngs, strict=True)):
      try:
        self.image(example.image, rng, pixels[i])
      except images.BadImage as error:
        bad[i] = error
    return {"image": pixels, "text": tokens}, bad

  def image(
    self,
    image: bytes | np.ndarray,
    rng: np.random.Generator | None = None,
    out: np.ndarray | None = None,
  ) -> np.ndarray:
    """Returns uint8 [image_size, image_size, 3] of an encoded image.

    Args:
      image: encoded; if embedded, float32 [E], it stays as it is.
      rng: needed for augmentation alone.
      out: an array to write to.

    Raises:
      BadImage: it cannot be decoded.
    """
    if isinstance(image, np.ndarray):
      seen = image
    else:
      flip = self.flip and rng.random() < 0.5
      seen = self.squash(*self.decode(image, rng), out)
      seen = images.flip(seen) if flip else seen
    if out is not None and seen is not out:
      out[:] = seen
    return seen

  def _rng(self, example: Example, seed: Seed) -> np.random.Generator | None:
    """Returns none where nothing is drawn: to make one takes its time."""
    draws = self.flip or self.crop_min_area < 1.0 or len(example.texts) > 1
    return np.random.default_rng(seed) if draws else None

  def decode(
    self, image: bytes, rng: np.random.Generator | None
  ) -> tuple[np.ndarray, images.Box | None]:
    """Returns uint8 [H, W, 3], and the box to cut from it (None: all).

    The box is the same share of the image with either decoder.

    Raises:
      BadImage: the image cannot be decoded.
    """
    choose_box = None
    if self.crop_min_area < 1.0:
      choose_box = functools.partial(
        images.random_box, rng=rng, min_area=self.crop_min_area
      )
    # Without antialiasing every pixel counts.
    if self.decoder == "fast" and self.resize != images.BIG_VISION:
      return fast_images.decode(image, self.image_size, choose_box)
    pixels = images.decode(image)
    return pixels, choose_box and choose_box(*pixels.shape[:2])

  def squash(
    self,
    pixels: np.ndarray,
    box: images.Box | None,
    out: np.ndarray | None = None,
  ) -> np.ndarray:
    """Returns uint8 [image_size, image_size, 3] of what `decode` returned.

    It is written to `out` where there is one and the decoder can.
    """
    if self.decoder == "fast" and self.resize == "bilinear":
      return fast_images.resize(pixels, self.image_size, box, out)
    return images.resize(pixels, self.image_size, self.resize, box)


def _draw_text(example: Example, rng: np.random.Generator | None) -> str:
  if len(example.texts) == 1:
    return example.texts[0]
  if example.weights:
    return example.texts[rng.choice(len(example.texts), p=example.weights)]
  return example.texts[rng.integers(len(example.texts))]
