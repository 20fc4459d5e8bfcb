"""A trained model in use: images and texts -> embeddings, logits, scores.

Shape letters: I images, T texts, E embedding width.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools
import os
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from big_siglip import build, sharding
from big_siglip.data import images as image_data
from big_siglip.data.preprocessing import Preprocess
from big_siglip.errors import UserError
from big_siglip.evaluators import Embedders, exact_model, make_embedders
from big_siglip.models import make_model
from big_siglip.schema.sizes import resolve_image
from big_siglip.trained import saved

# What can be embedded as an image: encoded bytes, the path of a file, a Pillow
# image, or uint8 [H, W, 3].
ImageLike = bytes | str | os.PathLike | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Model:
  """Two towers with their parameters and their preprocessing.

  Attributes:
    config: `model` and `data` (preprocessing) of its training.
    params: the parameters.
    mesh: where they lie.
    preprocess: what comes before the towers.
    embedders: see `evaluators.make_embedders`.
    batch_size: rows that are embedded at once.
  """

  config: ConfigDict
  params: Any
  mesh: Mesh
  preprocess: Preprocess
  embedders: Embedders
  batch_size: int = 64

  @property
  def logit_scale(self) -> float:
    """The multiplier of the logits."""
    return float(np.exp(self.params["logit_scale"]))

  @property
  def logit_bias(self) -> float:
    """What is added to the logits."""
    return float(self.params["logit_bias"])

  def embed_images(self, images: Iterable[ImageLike]) -> np.ndarray:
    """Returns IE float32 of length 1.

    Raises:
      BadImage: one of them cannot be decoded.
    """
    return self._embed(self.embedders.image, map(self.prepare_image, images))

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns TE float32 of length 1."""
    if isinstance(texts, str):
      raise UserError("texts: must be a list of strings, not one string")
    tokens = self.preprocess.texts(list(texts))
    return self._embed(self.embedders.text, tokens)

  def logits(
    self, images: Iterable[ImageLike], texts: Sequence[str]
  ) -> np.ndarray:
    """Returns IT float32: scaled cosines plus the bias."""
    cosines = self.embed_images(images) @ self.embed_texts(texts).T
    return self.logit_scale * cosines + self.logit_bias

  def probabilities(
    self, images: Iterable[ImageLike], texts: Sequence[str]
  ) -> np.ndarray:
    """Returns IT float32: how likely each text belongs to each image.

    Each pair is a question of its own (arXiv:2303.15343, section 3.2), so that
    the texts of an image add up to anything from 0 to T.
    """
    return sigmoid(self.logits(images, texts))

  def prepare_image(self, image: ImageLike) -> np.ndarray:
    """Returns what the image tower sees, uint8 [H, W, 3].

    Raises:
      BadImage: it cannot be decoded.
    """
    if isinstance(image, str | os.PathLike):
      with open(image, "rb") as file:
        image = file.read()
    if isinstance(image, bytes):
      return self.preprocess.image(image)
    if isinstance(image, Image.Image):
      image = image_data.from_pillow(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
      raise UserError(
        f"an image of dtype {image.dtype} and shape {list(image.shape)}: must "
        "be uint8 [height, width, 3]"
      )
    return self.preprocess.image(image)

  def _embed(self, embed, rows: Iterable[np.ndarray]) -> np.ndarray:
    parts = [
      np.asarray(embed(self.params, batch, {})[0])[:count]
      for batch, count in _batches(rows, self.batch_size)
    ]
    if not parts:
      model = self.config.model
      width = model.embed_dim or resolve_image(model.image).width
      return np.zeros((0, width), np.float32)
    return np.concatenate(parts)


def load(path: str) -> Model:
  """See `big_siglip.load`."""
  mesh = sharding.make_mesh()
  config, params = saved.load(path, mesh)
  config.model = exact_model(config.model)
  return _model(config, params, mesh)


def sigmoid(logits: np.ndarray) -> np.ndarray:
  """Returns 1 / (1 + exp(-logits)), without overflow."""
  return np.exp(-np.logaddexp(0, -logits))


def _model(config: ConfigDict, params: Any, mesh: Mesh) -> Model:
  embedders = make_embedders(make_model(config.model), mesh)
  preprocess = build.preprocess(config)
  return Model(config, params, mesh, preprocess, embedders)


def _batches(
  rows: Iterable[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields (batch of `size` or less, how many count): few shapes to compile."""
  rows = iter(rows)
  first = True
  while batch := list(itertools.islice(rows, size)):
    count = len(batch)
    if not first:  # The last of several takes the others' shape.
      batch += [batch[-1]] * (size - count)
    first = False
    yield np.stack(batch), count
