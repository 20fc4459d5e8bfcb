"""A classifier that is kept: a linear map from images' embeddings to labels.

A folder with the matrix (weights.npz) and what it is (classifier.json): its
labels, the model whose embeddings it reads, what it learnt from and how well it
did on images that it had not seen. big-siglip probe makes it.

Shape letters: I images, E embedding width, C labels.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import io
import json
import os
import pathlib
from typing import Any, NamedTuple, TYPE_CHECKING
import zipfile

import numpy as np

from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import UserError
from big_siglip.run import workdir
from big_siglip.trained import saved
from big_siglip.trained.inputs import ImageLike

if TYPE_CHECKING:
  from big_siglip.trained.inference import Model

NAME, WEIGHTS = "classifier.json", "weights.npz"
# What of the preprocessing decides about an image's pixels.
_PIXELS = (
  "image_size",
  "max_patches",
  "resize",
  "crop",
  "crop_fraction",
  "fill",
  "mean",
  "std",
)
_DAMAGES = (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class Description:
  """What a classifier is.

  Attributes:
    labels: C, in the order of the matrix.
    checkpoint: where the model lay.
    image_tower: a hash of the parameters of its image tower.
    pixels: its preprocessing of images.
    data: what it learnt from, in words.
    images: how many images of those it learnt from.
    l2: the penalty of the logistic regression.
    measured: of images that had not taught, before all of them did: "accuracy",
      the "low" and "high" end of its 95 % interval (Wilson's), "per_class" (the
      mean over labels), and how many "images" these were.
  """

  labels: Sequence[str]
  checkpoint: str
  image_tower: str
  pixels: Mapping[str, Any]
  data: str
  images: int
  l2: float
  measured: Mapping[str, float]


class Head(NamedTuple):
  """A classifier without the model whose embeddings it reads.

  Attributes:
    weights: EC float32.
    bias: C float32.
    description: what it is.
  """

  weights: np.ndarray
  bias: np.ndarray
  description: Description

  @property
  def labels(self) -> tuple[str, ...]:
    """The labels, in the order of the columns."""
    return tuple(self.description.labels)

  def logits(self, embeddings: np.ndarray) -> np.ndarray:
    """Returns IC float32 of IE unit vectors."""
    return embeddings @ self.weights + self.bias

  def __str__(self) -> str:
    """Returns a line that says what it learnt from, and how well."""
    about, measured = self.description, self.description.measured
    low, high = measured["low"], measured["high"]
    return (
      f"classifier of {len(about.labels):,} labels, learnt from {about.data} "
      f"({about.images:,} images): {measured['accuracy']:.1%} right of "
      f"{measured['images']:,.0f} held-out images (95 % interval "
      f"{100 * low:.1f} to {100 * high:.1f})"
    )


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A model with a classifier on its embeddings.

  Example:
    birds = big_siglip.load("models/b16").classifier("classifiers/birds")
    birds.predict(["cat.jpg"])  # The likeliest label of each image.
    birds.probabilities(["cat.jpg"])  # [1, C]

  Attributes:
    model: embeds images.
    head: reads the embeddings.
  """

  model: "Model"
  head: Head

  @property
  def labels(self) -> tuple[str, ...]:
    """The labels, in the order of the columns."""
    return self.head.labels

  def probabilities(self, images: Iterable[ImageLike]) -> np.ndarray:
    """Returns IC float32: how likely each label is; of an image they sum to 1.

    Raises:
      UserError: one of them cannot be read, and which.
    """
    return softmax(self.head.logits(self.model.embed_images(images)))

  def predict(self, images: Iterable[ImageLike]) -> list[str]:
    """Returns the likeliest label of each image.

    Raises:
      UserError: one of them cannot be read, and which.
    """
    best = self.probabilities(images).argmax(axis=1)
    return [self.labels[number] for number in best.tolist()]


def softmax(logits: np.ndarray) -> np.ndarray:
  """Returns each row's probabilities, which sum to 1."""
  return np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))


def describe_tower(params: Any, config: Any) -> dict[str, Any]:
  """Returns `image_tower` and `pixels` of a model.

  Args:
    params: its parameters.
    config: `model` and `data`.
  """
  pixels = Preprocessing.of(config).as_dict()
  return {
    "image_tower": saved.fingerprint(params["image"]),
    # As JSON reads it back.
    "pixels": json.loads(
      json.dumps({name: pixels[name] for name in _PIXELS if name in pixels})
    ),
  }


def load(folder: str | os.PathLike[str], model: "Model") -> Classifier:
  """Returns a model with the classifier of a folder.

  Raises:
    UserError: none lies there, or it is damaged, or reads the embeddings of
      another model.
  """
  head = read_of(os.fspath(folder), model.params, model.config, model.path)
  return Classifier(model, head)


def read_of(folder: str, params: Any, config: Any, path: str) -> Head:
  """Returns the classifier of a folder, which is a model's.

  Args:
    folder: of the classifier.
    params: of the model.
    config: `model` and `data` of it.
    path: what messages call it.

  Raises:
    UserError: none lies there, or it is damaged, or reads the embeddings of
      another model.
  """
  head = read(folder)
  about, now = head.description, describe_tower(params, config)
  width = config.model.embed_dim or len(head.weights)
  for field in ("image_tower", "pixels"):
    if getattr(about, field) != now[field] or width != len(head.weights):
      what = {
        "image_tower": "the embeddings of another image tower",
        "pixels": "images of other preprocessing",
      }[field]
      raise UserError(
        f"{folder}: was learnt from {what}, that of {about.checkpoint}, and "
        f"not of {path}"
      )
  return head


def read(folder: str) -> Head:
  """Returns what `write` wrote.

  Raises:
    UserError: it cannot be read, or is damaged.
  """
  place = pathlib.Path(folder).expanduser()
  if not (place / NAME).is_file():
    raise UserError(f"{folder}: holds no classifier (no {NAME})")
  try:
    about = Description(**json.loads((place / NAME).read_text()))
    with np.load(place / WEIGHTS, allow_pickle=False) as arrays:
      weights, bias = (arrays[name] for name in ("weights", "bias"))
    if weights.shape[1:] != bias.shape or len(bias) != len(about.labels):
      raise ValueError(f"{WEIGHTS} has another shape than {NAME} has labels")
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
      raise ValueError(f"{WEIGHTS} is not finite")
  except _DAMAGES as error:
    said = f"{folder}: holds a damaged classifier ({error})"
    raise UserError(said) from error
  return Head(weights, bias, about)


def write(folder: pathlib.Path, head: Head) -> None:
  """Writes a classifier into a new folder; its description last.

  Raises:
    UserError: it cannot be written.
  """
  buffer = io.BytesIO()
  np.savez(buffer, weights=head.weights, bias=head.bias)
  text = json.dumps(dataclasses.asdict(head.description), indent=2) + "\n"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(buffer.getvalue())
    workdir.write_whole(folder / NAME, text)
  except OSError as error:
    raise UserError(
      f"{folder}: cannot be written ({error.strerror})"
    ) from error
