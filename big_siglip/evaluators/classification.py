"""Zero-shot classification: which class's prompts lie closest to an image.

Shape letters: N images, C classes, T prompt templates, D embedding width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from big_siglip.errors import raise_problems
from big_siglip.evaluators.embed import embed_all, Embedders


class Predictions(NamedTuple):
  """What the classifier said of each image that could be read.

  Attributes:
    index: N, the image's number in its source.
    predicted: N, the class; -1 where the embedding is not finite.
    label: N, the right class.
  """

  index: np.ndarray
  predicted: np.ndarray
  label: np.ndarray


@dataclasses.dataclass(frozen=True)
class ZeroShotClassification:
  """Accuracy of the nearest class, by the mean embedding of its prompts.

  Attributes:
    images: returns padded batches with "image", "label", "index" and "mask".
    prompts: returns padded batches with "text", "index" and "mask"; template t
      of class c has the index c * T + t.
    num_images: how many there are, with those that cannot be read.
    num_classes: C.
    embedders: embed images and texts.
  """

  images: Callable[[], Iterable[Mapping[str, np.ndarray]]]
  prompts: Callable[[], Iterable[Mapping[str, np.ndarray]]]
  num_images: int
  num_classes: int
  embedders: Embedders

  def __call__(self, params: Any) -> dict[str, float]:
    """Returns "accuracy" in [0, 1] and "skipped", images that are no image."""
    _, predicted, label = self.predict(params)
    return {
      "accuracy": float(np.mean(predicted == label)),
      "skipped": float(self.num_images - len(label)),
    }

  def predict(self, params: Any) -> Predictions:
    """Returns the class of every image, in order; the same in each process."""
    text, _ = embed_all(
      self.embedders.text, params, self.prompts(), inputs="text"
    )
    image, values = embed_all(
      self.embedders.image,
      params,
      self.images(),
      inputs="image",
      labels=("label",),
    )
    classes = classifier(text.reshape(self.num_classes, -1, text.shape[-1]))
    predicted = nearest_class(image, classes)
    return Predictions(values["index"], predicted, values["label"])


def fill_templates(
  templates: Sequence[str], class_names: Sequence[str]
) -> list[str]:
  """Returns the C * T prompts, all templates of the first class first.

  Args:
    templates: such as "a photo of the digit {}.".
    class_names: what takes the place of "{}".

  Raises:
    UserError: no class, no template, or one without exactly one "{}".
  """
  problems = []
  if not class_names:
    problems.append("classification: the list of classes is empty")
  if isinstance(templates, str) or not templates:
    problems.append(
      f"config.evals: templates={templates!r}: must be a tuple of at least one"
    )
  else:
    problems += [
      f"config.evals: templates has {template!r}: must have '{{}}' exactly once"
      for template in templates
      if template.count("{}") != 1
    ]
  raise_problems(problems)
  return [
    template.replace("{}", str(name))
    for name in class_names
    for template in templates
  ]


def classifier(text_embeddings: np.ndarray) -> np.ndarray:
  """Returns the CD unit vectors of the classes from their CTD prompts.

  Each is the mean of the prompts' unit vectors, made a unit vector again, as in
  CLIP (arXiv:2103.00020, section 3.1.4).
  """
  return _unit(_unit(text_embeddings.astype(np.float32)).mean(axis=1))


def nearest_class(
  image_embeddings: np.ndarray, classes: np.ndarray
) -> np.ndarray:
  """Returns N classes of largest cosine, -1 where that is not a number.

  Args:
    image_embeddings: ND.
    classes: CD unit vectors.
  """
  cosines = _unit(image_embeddings.astype(np.float32)) @ classes.T
  # argmax would answer with the class of the first NaN.
  finite = np.isfinite(cosines).all(axis=1)
  return np.where(finite, cosines.argmax(axis=1), -1)


def _unit(vectors: np.ndarray) -> np.ndarray:
  """Divides by the length along the last axis."""
  length = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.maximum(length, 1e-8)
