"""Retrieval: the captions of an image, and the image of a caption."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from big_siglip.errors import UserError
from big_siglip.evaluators.embed import Embedders, Rows
from big_siglip.evaluators.recall import recall
from big_siglip.evaluators.result import counted, Result


class Captions(NamedTuple):
  """The captions of a data set in one language.

  Attributes:
    texts: padded batches with "text", "index" and "mask".
    images: the number of the image that each describes; one may have several.
  """

  texts: Rows
  images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Recall at k among all images and all captions of a data set.

  An image that cannot be read takes its captions out of the candidates too.

  Attributes:
    images: padded batches with "image", "index" and "mask".
    captions: {language: captions}; a single language may be called "".
    num_images: how many there are, with those that cannot be read.
    embedders: embed images and texts.
  """

  images: Rows
  captions: Mapping[str, Captions]
  num_images: int
  embedders: Embedders

  def __post_init__(self):
    empty = [n for n, c in self.captions.items() if not len(c.images)]
    if empty or not self.captions:
      of = f" of {', '.join(empty)}" if any(empty) else ""
      raise UserError(f"retrieval: no caption{of} to find an image by")

  def __call__(self, params: Any) -> Result:
    """Returns "image_to_text/recall@K", "text_to_image/recall@K", "skipped".

    Of several languages each has its own, "fr/image_to_text/recall@K", beside
    their mean under the plain names. "nonfinite" is there where embeddings are
    not finite: how many.
    """
    image, values = self.images.embed(self.embedders.image, params)
    images = values["index"]
    of_language, nonfinite = {}, int((~values["finite"]).sum())
    for name, captions in self.captions.items():
      of_language[name], bad = self._recalls(params, captions, image, images)
      nonfinite += bad
    first = next(iter(of_language.values()))
    metrics = {
      name: float(np.mean([recalls[name] for recalls in of_language.values()]))
      for name in first
    }
    for language, recalls in of_language.items():
      if language:
        metrics |= {f"{language}/{k}": value for k, value in recalls.items()}
    metrics["skipped"] = float(self.num_images - len(images))
    metrics |= counted(nonfinite)
    return Result(metrics, {"num_images": len(images)})

  def _recalls(
    self, params, captions, image, images
  ) -> tuple[dict[str, float], int]:
    """Returns the metrics of a language, and how many texts are not finite."""
    text, values = captions.texts.embed(self.embedders.text, params)
    text_images = captions.images[values["index"]]
    readable = np.isin(text_images, images)
    text, text_images = text[readable], text_images[readable]
    nonfinite = int((~values["finite"][readable]).sum())
    # An image without a caption in this language asks for nothing, but is
    # there to be mistaken.
    asked = np.isin(images, text_images)
    to_text = recall(image[asked], text, images[asked], text_images)
    to_image = recall(text, image, text_images, images)
    metrics = {
      **{f"image_to_text/{name}": value for name, value in to_text.items()},
      **{f"text_to_image/{name}": value for name, value in to_image.items()},
    }
    return metrics, nonfinite
