"""A trained model in use: images and texts -> embeddings, logits, scores.

Shape letters: I images, T texts, E embedding width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
from typing import Any, ClassVar

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip.data.preprocessing import Preprocess
from big_siglip.errors import UserError
from big_siglip.evaluators import Embedders
from big_siglip.evaluators.embed import Embed
from big_siglip.schema.sizes import has_text_tower, resolve_image
from big_siglip.trained import classifier, inputs, patches
from big_siglip.trained.calibrated import Calibration
from big_siglip.trained.classifier import Classifier
from big_siglip.trained.described import describe, missing_blocks
from big_siglip.trained.inputs import ImageLike
from big_siglip.trained.scoring import of_classes, sigmoid


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Model:
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
    "was trained with a softmax, which does not see the logits' bias: it was "
    "never trained, so there are no sigmoid probabilities"
  )

  def __repr__(self) -> str:
    """Returns one line: kind, sizes, parameters, devices, where from."""
    model = self.config.model
    return describe(model, self.params, self.mesh, self.path)

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
      images: paths, the bytes of files, Pillow images, or uint8 [H, W, 3]. A
        list, or what makes one after the other: they are read as they are
        needed, a batch at a time.
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
    rows = self._tokenized(inputs.each(texts, "texts", inputs.read_text))
    with inputs.showing(progress, count, "texts") as add:
      return self._embed(embed, rows, batch_size, add)

  def _tokenized(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
    for some in inputs.batches(texts, self.batch_size):
      yield from self.preprocess.texts(some)

  def embed_patches(
    self,
    images: Iterable[ImageLike],
    *,
    kind: str = "last",
    layer: int = -1,
    norm: bool = True,
    size: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> np.ndarray:
    """Returns IhwC float32: what each patch knows, on the grid of the image.

    Example:
      model.embed_patches(["cat.jpg"])  # [1, 14, 14, 768]
      maps = model.embed_patches(["cat.jpg"], kind="text", size=448)
      maps @ model.embed_texts(["a cat's ear"]).T  # [1, 28, 28, 1], cosines

    Args:
      images: as for `embed_images`.
      kind: "last": tokens after the final norm; "text": each patch in the space
        of the texts, of length 1; "value", "share", "attention": see
        `big_siglip.models.patches.Patches`, as `layer` and `norm`.
      layer: whose tokens; -1 the last block's, -2 those of the one before.
      norm: False: without the final norm, as LLaVA takes them.
      size: side in pixels that images are resized to; None: the model's own.
      stride: pixels from a window of the model's own size to the next; None:
        the whole image at once (`big_siglip.trained.patches.Resolution`).
      batch_size: as for `embed_images`.
      progress: as well.

    Raises:
      UserError: one of them cannot be read, and which; or the tower has no such
        patches.
    """
    look = patches.look_of(
      self,
      patches.Patches(kind, layer, norm),
      patches.Resolution(size, stride),
    )
    count = inputs.check_list(images, "images")
    with inputs.showing(progress, count, "images") as add:
      return patches.embed_patches(self, images, look, batch_size, add)

  @functools.cached_property
  def looks(self) -> dict[tuple, patches.Look]:
    """What `trained.patches` has made of this model; by what was asked."""
    return {}

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
        f"{self.path}: its image tower has no pool{missing_blocks(config)}: "
        "it has no embedding of an image; Model.embed_patches gives its "
        "tokens, and config.model.image.pooling=gap trains on their mean"
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
    return sigmoid(self.logits(images, texts))

  def classifier(self, folder: str) -> Classifier:
    """See `big_siglip.trained.classifier.load`."""
    return classifier.load(folder, self)

  def prepare_image(self, image: ImageLike) -> np.ndarray:
    """Returns what the image tower sees, uint8 [H, W, 3].

    Raises:
      UserError: it is nothing that may be an image.
      OSError: its file cannot be read.
      BadImage: it cannot be decoded.
    """
    return self.preprocess.image(inputs.read_image(image))

  def _embed(
    self,
    embed: Embed,
    rows: Iterable[np.ndarray],
    batch_size: int | None = None,
    add: Callable[[int], None] = lambda count: None,
  ) -> np.ndarray:
    size = self.batch_size
    if batch_size is not None:
      size = inputs.check_batch_size(batch_size)
    parts = []
    for batch, count in inputs.padded(rows, size):
      parts.append(np.asarray(embed(self.params, batch, {})[0])[:count])
      add(count)
    if not parts:
      model = self.config.model
      width = model.embed_dim or resolve_image(model.image).width
      return np.zeros((0, width), np.float32)
    return np.concatenate(parts)
