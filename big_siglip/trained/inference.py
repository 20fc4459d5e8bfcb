"""A trained model in use: images and texts -> embeddings, logits, scores.

Shape letters: I images, T texts, E embedding width.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import itertools
import os
from typing import Any, ClassVar

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from big_siglip import build, sharding
from big_siglip.data import images as image_data
from big_siglip.data.preprocessing import Preprocess
from big_siglip.errors import UserError
from big_siglip.evaluators import Embedders, exact_model, make_embedders
from big_siglip.evaluators.classification import classifier as class_vectors
from big_siglip.evaluators.embed import Embed, make_embed
from big_siglip.models import make_model
from big_siglip.schema.sizes import has_text_tower, resolve_image, TOWERS
from big_siglip.trained import calibrated, classifier, saved
from big_siglip.trained.calibrated import Calibration
from big_siglip.trained.classifier import Classifier

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
    path: what messages call it.
    calibration: scale and bias in place of the trained ones; None: these.
  """

  config: ConfigDict
  params: Any
  mesh: Mesh
  preprocess: Preprocess
  embedders: Embedders
  batch_size: int = 64
  path: str = "this model"
  calibration: Calibration | None = None
  # Of a model without trained bias, in words.
  NO_SIGMOID: ClassVar[str] = (
    "was trained with a softmax, which does not see the logits' bias: it was "
    "never trained, so there are no sigmoid probabilities"
  )

  @property
  def has_trained_bias(self) -> bool:
    """Whether sigmoid probabilities mean something.

    A softmax gives the bias no gradient, and where weights of others have none
    it is exactly 0. An image tower alone has none. A calibration fits one to
    any model.
    """
    if not has_text_tower(self.config.model):
      return False
    if self.calibration:
      return True
    loss = self.config.get("loss", {}).get("name", "sigmoid")
    return not loss.endswith("softmax") and self.logit_bias != 0

  @property
  def logit_scale(self) -> float:
    """The multiplier of the logits, calibrated if the model is."""
    if self.calibration:
      return self.calibration.scale
    return float(np.exp(self.params["logit_scale"]))

  @property
  def logit_bias(self) -> float:
    """What is added to the logits, calibrated if the model is."""
    if self.calibration:
      return self.calibration.bias
    return float(self.params["logit_bias"])

  def embed_images(self, images: Iterable[ImageLike]) -> np.ndarray:
    """Returns IE float32 of length 1.

    Raises:
      BadImage: one of them cannot be decoded.
      UserError: the image tower has no pool.
    """
    embed = self.embedder("images")
    return self._embed(embed, map(self.prepare_image, images))

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns TE float32 of length 1.

    Raises:
      UserError: there is no text tower.
    """
    embed = self.embedder("texts")
    if isinstance(texts, str):
      raise UserError("texts: must be a list of strings, not one string")
    tokens = self.preprocess.texts(list(texts))
    return self._embed(embed, tokens)

  def image_tokens(self, images: Iterable[ImageLike]) -> np.ndarray:
    """Returns ILD float32: the patches after the final norm, before a pool.

    Raises:
      BadImage: one of them cannot be decoded.
    """
    return self._embed(self._see, map(self.prepare_image, images))

  @functools.cached_property
  def _see(self) -> Embed:
    model = make_model(self.config.model)

    def see(params: Any, image: Any) -> Any:
      return model.look(params, {"image": image}).image_tokens

    return make_embed(see, self.mesh)

  def embedder(self, kind: str) -> Embed:
    """Returns what embeds "images" or "texts".

    Raises:
      UserError: the model has no tower for that, or its tower has no pool.
    """
    config = self.config.model
    if kind == "texts":
      if not has_text_tower(config):
        raise UserError(
          f"{self.path}: is an image tower alone: it embeds images and no texts"
        )
      return self.embedders.text
    if config.image.pooling == "none":
      raise UserError(
        f"{self.path}: its image tower has no pool{_missing_blocks(config)}: "
        "it has no embedding of an image; Model.image_tokens gives its tokens, "
        "and config.model.image.pooling=gap trains on their mean"
      )
    return self.embedders.image

  def embed_prepared(self, images: Iterable[np.ndarray]) -> np.ndarray:
    """Returns IE float32 of length 1, of what `prepare_image` returned."""
    return self._embed(self.embedder("images"), images)

  def embed_classes(self, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the unit vector of each class: the mean of its prompts' vectors.

    Args:
      prompts: of each class, at least one.
    """
    rows = self.embed_texts([text for own in prompts for text in own])
    return of_classes(rows, list(map(len, prompts)))

  def logits(
    self, images: Iterable[ImageLike], texts: Sequence[str]
  ) -> np.ndarray:
    """Returns IT float32: scaled cosines plus the bias."""
    embedded = self.embed_texts(texts)
    cosines = self.embed_images(images) @ embedded.T
    return self.logit_scale * cosines + self.logit_bias

  def probabilities(
    self, images: Iterable[ImageLike], texts: Sequence[str]
  ) -> np.ndarray:
    """Returns IT float32: how likely each text belongs to each image.

    Each pair is a question of its own (arXiv:2303.15343, section 3.2), so that
    the texts of an image add up to anything from 0 to T. A model without a
    trained bias (`has_trained_bias`) has none that mean anything, and is warned
    of.
    """
    if not self.has_trained_bias:
      logging.warning("this model %s", self.NO_SIGMOID)
    return sigmoid(self.logits(images, texts))

  def classifier(self, folder: str) -> Classifier:
    """Returns this model with a classifier that tools/probe.py left.

    Raises:
      UserError: none lies there, or it is one of another model.
    """
    return classifier.load(folder, self)

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
      return np.zeros((0, *self._width(embed)), np.float32)
    return np.concatenate(parts)

  def _width(self, embed: Embed) -> tuple[int, ...]:
    """Returns the shape of what `embed` returns for one row."""
    model = self.config.model
    size = resolve_image(model.image)
    if embed is self._see:
      return (model.image.image_size // size.patch_size) ** 2, size.width
    return (model.embed_dim or size.width,)


def load(path: str, *, calibration: str = calibrated.KEPT) -> Model:
  """See `big_siglip.load`."""
  mesh = sharding.make_mesh()
  config, params = saved.load(path, mesh)
  config.model = exact_model(config.model)
  kept = calibrated.load(path, params, calibration)
  return _model(config, params, mesh, path, kept)


def of_classes(rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
  """Returns the unit vector of each class, from those of its texts.

  Args:
    rows: E float32 of each text, those of a class side by side.
    counts: how many texts each class has, 1 at least.
  """
  if len(counts) == len(rows):
    return rows
  return class_vectors(
    rows, np.repeat(np.arange(len(counts)), counts), len(counts)
  )


def sigmoid(logits: np.ndarray) -> np.ndarray:
  """Returns 1 / (1 + exp(-logits)), without overflow."""
  return np.exp(-np.logaddexp(0, -logits))


def _missing_blocks(model: ConfigDict) -> str:
  """Returns what to say of an image tower that was cut off before its end."""
  name = model.image.size.partition("/")[0]
  here, whole = resolve_image(model.image).depth, TOWERS[name].depth
  if here >= whole:
    return ""
  return f" and just {here} of the {whole} blocks of {name}"


def _model(
  config: ConfigDict,
  params: Any,
  mesh: Mesh,
  path: str,
  calibration: Calibration | None,
) -> Model:
  embedders = make_embedders(make_model(config.model), mesh)
  preprocess = build.preprocess(config)
  return Model(
    *(config, params, mesh, preprocess, embedders),
    path=path,
    calibration=calibration,
  )


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
