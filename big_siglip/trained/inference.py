"""A trained model in use: images and texts -> embeddings, logits, scores.

Shape letters: I images, T texts, E embedding width.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import itertools
import os
from typing import Any, ClassVar

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip.data.batch import Image as PreparedImage
from big_siglip.data.preprocessing import Preprocess
from big_siglip.errors import UserError
from big_siglip.evaluators import Embedders
from big_siglip.evaluators.embed import Embed
from big_siglip.schema.sizes import has_text_tower
from big_siglip.trained import classifier, inputs, vectors
from big_siglip.trained.calibrated import Calibration
from big_siglip.trained.captioning import Captioning
from big_siglip.trained.classifier import Classifier
from big_siglip.trained.dense import Dense
from big_siglip.trained.described import describe, no_pool
from big_siglip.trained.inputs import ImageLike


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Model(Dense, Captioning):
  """Two towers with their parameters and their preprocessing.

  Example:
    model = big_siglip.load("models/b16")
    model.embed_images(["cat.jpg"])  # [1, 768] float32, of length 1
    model.probabilities(["cat.jpg"], ["a cat", "a dog"])  # [1, 2]

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
    "was trained without a sigmoid loss, which alone trains the logits' bias: "
    "there are no sigmoid probabilities"
  )

  def __repr__(self) -> str:
    """Returns one line: kind, sizes, parameters, devices, where from."""
    model = self.config.model
    return describe(model, self.params, self.mesh, self.path)

  def __copy__(self) -> "Model":
    """Returns a model with the same parameters: they never change."""
    return dataclasses.replace(self)

  def __deepcopy__(self, memo: Any) -> "Model":
    """Returns the same."""
    return self.__copy__()

  def __reduce__(self) -> Any:
    """Says what to do instead: parameters on devices go in no pickle."""
    raise TypeError(
      "a Model cannot be pickled; load it where it is used: "
      f"big_siglip.load({self.path!r})"
    )

  @property
  def has_trained_bias(self) -> bool:
    """Whether sigmoid probabilities mean something.

    A sigmoid loss alone gives the bias a gradient, and where weights of others
    have none it is exactly 0. An image tower alone has none. A calibration fits
    one to any model.
    """
    if not has_text_tower(self.config.model):
      return False
    if self.calibration:
      return True
    loss = self.config.get("loss", {}).get("name", "sigmoid")
    return loss.endswith("sigmoid") and self.logit_bias != 0

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

  def embed_images(
    self,
    images: Iterable[ImageLike],
    *,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> np.ndarray:
    """Returns IE float32 of length 1, in the order of the images.

    Example:
      model.embed_images(["cat.jpg", pathlib.Path("dog.png")])
      model.embed_images(PHOTOS.glob("*.jpg"), progress=True)

    Args:
      images: paths, files opened as "rb" or their bytes, Pillow images, or
        uint8 [H, W, 3]. A list, or what makes one after the other: they are
        read as they are needed, a batch at a time.
      batch_size: images on the devices at once; None: the model's.
      progress: whether to say how far it is, on standard error.

    Raises:
      UserError: one of them cannot be read, and which; or the image tower has
        no pool.
    """
    embed = self.embedder("images")
    count = inputs.check_list(images, "images")
    rows = inputs.each(images, "images", self.prepare_image)
    with inputs.showing(progress, count, "images") as add:
      return self._embed(embed, rows, batch_size, add)

  def embed_texts(
    self,
    texts: Iterable[str],
    *,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> np.ndarray:
    """Returns TE float32 of length 1, in the order of the texts.

    Example:
      model.embed_texts(["a photo of a cat", "a photo of a dog"])

    Args:
      texts: a list of strings, or what makes one after the other.
      batch_size: texts on the devices at once; None: the model's.
      progress: whether to say how far it is, on standard error.

    Raises:
      UserError: one of them is no string, and which; or there is no text tower.
    """
    embed = self.embedder("texts")
    count = inputs.check_list(texts, "texts")
    checked = inputs.each(texts, "texts", inputs.read_text)
    rows = itertools.chain.from_iterable(
      map(self.preprocess.texts, inputs.batches(checked, self.batch_size))
    )
    with inputs.showing(progress, count, "texts") as add:
      return self._embed(embed, rows, batch_size, add)

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
      raise UserError(f"{self.path}: {no_pool(config)}")
    return self.embedders.image

  def embed_prepared(self, images: Iterable[PreparedImage]) -> np.ndarray:
    """Returns IE float32 of length 1, of what `prepare_image` returned.

    Raises:
      UserError: one of them is something else, and which.
    """
    check = inputs.checking_prepared(self.preprocess.value)
    rows = inputs.each(images, "images", check)
    return self._embed(self.embedder("images"), rows)

  def embed_classes(self, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the unit vector of each class: the mean of its prompts' vectors.

    Example:
      model.embed_classes([["a cat", "a photo of a cat"], ["a dog"]])

    Args:
      prompts: of each class, at least one.

    Raises:
      UserError: one of them is no list of texts, or empty.
    """
    found = inputs.read_prompts(prompts)
    rows = self.embed_texts([text for own in found for text in own])
    return vectors.of_classes(rows, list(map(len, found)))

  def logits(
    self, images: Iterable[ImageLike], texts: Iterable[str]
  ) -> np.ndarray:
    """Returns IT float32: scaled cosines plus the bias."""
    embedded = self.embed_texts(texts)
    cosines = self.embed_images(images) @ embedded.T
    return self.logit_scale * cosines + self.logit_bias

  def probabilities(
    self, images: Iterable[ImageLike], texts: Iterable[str]
  ) -> np.ndarray:
    """Returns IT float32: how likely each text belongs to each image.

    Example:
      model.probabilities(["cat.jpg"], ["a cat", "a dog"])

    Each pair is a question of its own (arXiv:2303.15343, section 3.2), so that
    the texts of an image add up to anything from 0 to T. A model without a
    trained bias (`has_trained_bias`) has none that mean anything, and is warned
    of.
    """
    if not self.has_trained_bias:
      logging.warning("this model %s", self.NO_SIGMOID)
    return vectors.sigmoid(self.logits(images, texts))

  def classifier(self, folder: str | os.PathLike[str]) -> Classifier:
    """Returns the model with a classifier of `big-siglip probe`.

    Example:
      birds = model.classifier("classifiers/birds")
      birds.predict(["cat.jpg"])  # The likeliest label of each image.

    Raises:
      UserError: none lies there, or it reads another model's embeddings.
    """
    return classifier.load(os.fspath(folder), self)

  def prepare_image(self, image: ImageLike) -> PreparedImage:
    """Returns what the image tower sees, uint8 [H, W, 3].

    Of a model that keeps an image's shape (NaFlex): "patches", uint8
    [max_patches, p * p * 3], and their "grid", int32 [2], rows and columns.

    Raises:
      UserError: it is nothing that may be an image.
      OSError: its file cannot be read.
      BadImage: it cannot be decoded.
    """
    return self.preprocess.image(inputs.read_image(image))

  def _embed(
    self,
    embed: Embed,
    rows: Iterable[PreparedImage],
    batch_size: int | None = None,
    add: Callable[[int], None] = lambda count: None,
  ) -> np.ndarray:
    size = self.batch_size
    if batch_size is not None:
      size = inputs.check_batch_size(batch_size)
    width = vectors.width_of(self.config.model)
    return vectors.embed_rows(embed, self.params, rows, size, width, add)
