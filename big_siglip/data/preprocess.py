"""From an example to what the model sees of it."""

import dataclasses
import functools

import numpy as np

from big_siglip.data import fast_images, images
from big_siglip.data.sources import Example
from big_siglip.data.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Decodes, augments and tokenizes one example; pure and picklable.

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
    self, example: Example, rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """Returns "image" uint8 [H, W, 3], "text" int32 [text_length].

    Embedded images stay as they are, float32 [E].

    Raises:
      BadImage: the image cannot be decoded.
    """
    if example.weights:
      text = example.texts[rng.choice(len(example.texts), p=example.weights)]
    else:
      text = example.texts[rng.integers(len(example.texts))]
    flip = self.flip and rng.random() < 0.5
    image = example.image
    if not isinstance(image, np.ndarray):
      pixels, box = self.decode(image, rng)
      image = self.squash(pixels, box)
    return {
      "image": images.flip(image) if flip else image,
      "text": self.tokenizer([text], self.text_length)[0],
    }

  def decode(
    self, image: bytes, rng: np.random.Generator
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

  def squash(self, pixels: np.ndarray, box: images.Box | None) -> np.ndarray:
    """Returns uint8 [image_size, image_size, 3] of what `decode` returned."""
    if self.decoder == "fast" and self.resize == "bilinear":
      return fast_images.resize(pixels, self.image_size, box)
    return images.resize(pixels, self.image_size, self.resize, box)
