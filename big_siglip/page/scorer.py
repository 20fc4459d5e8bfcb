"""The one thread that uses the model: requests take turns on the device.

Shape letters: I images, T texts, E embedding width.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
import functools
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from big_siglip.data.images import BadImage
from big_siglip.errors import UserError
from big_siglip.page.firsts import FirstTimes
from big_siglip.page.limits import decode, Limits
from big_siglip.trained.classifier import Head, softmax
from big_siglip.trained.inference import Model
from big_siglip.trained.vectors import of_classes, sigmoid

_T = TypeVar("_T")


class Busy(RuntimeError):
  """Too many requests wait already."""


class File(NamedTuple):
  """An uploaded image."""

  name: str
  size: int
  content: BinaryIO


class Scorer:
  """Scores images and texts, one request after the other.

  Attributes:
    model: of `big_siglip.load`.
  """

  def __init__(self, model: Model, limits: Limits):
    """Starts no thread yet.

    Args:
      model: of `big_siglip.load`.
      limits: of the images, and of how many requests may wait.
    """
    self.model, self._limits = model, limits
    self._pool = ThreadPoolExecutor(1, "device")
    self._waiting = 0
    self._firsts = FirstTimes(model)
    # Most requests ask for the labels of the last one again.
    self._embed_labels = functools.lru_cache(maxsize=8)(self._embed_names)

  async def run(self, job: Callable[..., _T], *arguments: Any) -> _T:
    """Returns what a job returns, once it was its turn.

    Raises:
      Busy: too many wait.
    """
    if self._waiting >= self._limits.waiting:
      raise Busy("the model is busy; try again in a moment")
    self._waiting += 1
    try:
      loop = asyncio.get_running_loop()
      return await loop.run_in_executor(self._pool, job, *arguments)
    finally:
      self._waiting -= 1

  @property
  def state(self) -> dict[str, Any]:
    """What the model is at: what is compiled, and how many requests wait."""
    return {"compiling": self._firsts.now, "waiting": self._waiting}

  def start(self, job: Callable[[], Any]) -> None:
    """Does a job before all requests that come from now on."""
    self._pool.submit(job)

  def warm_up(self) -> None:
    """Compiles what one image and one text take."""
    size = self.model.config.model.image.image_size
    image = np.zeros((size, size, 3), np.uint8)
    self._embed_images([image])
    self._embed_names((("a",),))

  @property
  def calibration(self) -> dict[str, Any] | None:
    """What scale and bias were fitted on, where they are not the trained."""
    found = self.model.calibration
    if found is None:
      return None
    # Where data lie on this machine is no visitor's matter.
    name = found.data.rpartition("/")[2]
    return {"data": name, "images": found.images}

  @property
  def logit_scale(self) -> float:
    """The multiplier of a cosine."""
    return self.model.logit_scale

  @property
  def logit_bias(self) -> float | None:
    """What is added to it, if that was trained."""
    return self.model.logit_bias if self.has_sigmoid else None

  @property
  def has_sigmoid(self) -> bool:
    """Whether there are probabilities of each pair on its own."""
    return self.model.has_trained_bias

  def classify(
    self, files: Sequence[File], labels: Sequence[tuple[str, ...]]
  ) -> list[dict[str, Any]]:
    """Returns each image's scores in the labels' order, or what is wrong.

    A "probability" is None where the model has no trained bias.

    Args:
      files: images.
      labels: the names of each, at least one; no two the same.

    Raises:
      UserError: the embedding of a label is not finite.
    """
    answers, rows = self._embed_files(files)
    if not len(rows):
      return answers
    classes = self.classes(labels)
    logits = self._logits(rows @ classes.T)
    alone = sigmoid(logits) if self.has_sigmoid else None
    names = [own[0] for own in labels]
    return _with_scores(answers, names, softmax(logits), alone)

  def classes(self, labels: tuple[tuple[str, ...], ...]) -> np.ndarray:
    """Returns TE: the unit vector of each label.

    Raises:
      UserError: one is not finite.
    """
    classes = self._embed_labels(labels)
    for own, finite in zip(labels, _finite(classes), strict=True):
      if not finite:
        raise UserError(f"label {own[0]!r}: its embedding is not finite")
    return classes

  def classify_by(
    self, files: Sequence[File], head: Head
  ) -> list[dict[str, Any]]:
    """Returns the same of a classifier's labels; it has no "probability"."""
    answers, rows = self._embed_files(files)
    if not len(rows):
      return answers
    return _with_scores(answers, head.labels, softmax(head.logits(rows)), None)

  def _embed_files(
    self, files: Sequence[File]
  ) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Returns what became of each image, and the good ones' IE float32."""
    answers, images = self._read(files)
    rows = self._embed_images(images) if images else np.zeros((0, 0), "f4")
    good = (answer for answer in answers if "error" not in answer)
    for answer, finite in zip(good, _finite(rows), strict=True):
      if not finite:
        answer["error"] = "its embedding is not finite"
    return answers, rows[_finite(rows)]

  def _read(
    self, files: Sequence[File]
  ) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Returns the name of each, with what is wrong; and the good ones."""
    answers, images = [], []
    for file in files:
      try:
        images.append(self.model.prepare_image(self.decode(file)))
        answers.append({"name": file.name})
      except BadImage as error:
        answers.append({"name": file.name, "error": str(error)})
    return answers, images

  def embed(
    self, files: Sequence[File], texts: Sequence[str]
  ) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Returns unit vectors, TE float32, and what became of each image.

    That is its name, with an "embedding", E float32, or an "error".

    Args:
      files: images.
      texts: texts.
    """
    answers, images = self._read(files)
    if images:
      rows = iter(self._embed_images(images))
      for answer in answers:
        if "error" not in answer:
          answer["embedding"] = next(rows)
    rows = self._embed_texts(list(texts)) if texts else np.zeros((0, 0), "f4")
    return answers, rows

  def embed_queries(
    self, files: Sequence[File], texts: Sequence[str]
  ) -> np.ndarray:
    """Returns QE: the texts, then the images.

    Raises:
      UserError: an image cannot be read.
    """
    answers, rows = self.embed(files, texts)
    for answer in answers:
      if "error" in answer:
        raise UserError(f"{answer['name']}: {answer['error']}")
    rows = [*rows, *(answer["embedding"] for answer in answers)]
    return np.array(rows, np.float32)

  def probability(self, cosine: float) -> float | None:
    """Returns how likely a pair belongs together, if the model can say."""
    return float(sigmoid(self._logits(cosine))) if self.has_sigmoid else None

  def _logits(self, cosines: np.ndarray) -> np.ndarray:
    return self.model.logit_scale * cosines + self.model.logit_bias

  def decode(self, file: File) -> np.ndarray:
    """Returns an upload as uint8 [H, W, 3].

    Raises:
      BadImage: it is none, or too large.
    """
    limit = self._limits.image_bytes
    if file.size > limit:
      raise BadImage(f"is larger than {limit // 2**20} MB")
    resize = self.model.config.data.resize
    return decode(file.content.read(), self._limits, resize)

  def _embed_images(self, images: list[np.ndarray]) -> np.ndarray:
    padded = self._pad(images)
    with self.watch("images", len(padded)):
      return self.model.embed_prepared(padded)[: len(images)]

  def _embed_texts(self, texts: list[str]) -> np.ndarray:
    padded = self._pad(texts)
    with self.watch("texts", len(padded)):
      return self.model.embed_texts(padded)[: len(texts)]

  def _embed_names(self, labels: tuple[tuple[str, ...], ...]) -> np.ndarray:
    rows = self._embed_texts([name for own in labels for name in own])
    return of_classes(rows, list(map(len, labels)))

  def watch(self, kind: str, count: int) -> AbstractContextManager[None]:
    """Says that a batch is compiled, if it is the first of its size.

    Args:
      kind: "images", "texts" or "maps".
      count: rows.
    """
    return self._firsts.watch(kind, min(count, self.model.batch_size))

  def _pad(self, rows: list[_T]) -> list[_T]:
    """Repeats the last row up to a power of two: few shapes to compile."""
    size = self.model.batch_size
    if len(rows) >= size:
      return rows
    count = min(size, 1 << (len(rows) - 1).bit_length())
    return rows + rows[-1:] * (count - len(rows))


def _finite(rows: np.ndarray) -> np.ndarray:
  return np.isfinite(rows).all(axis=1)


def _with_scores(
  answers: list[dict[str, Any]],
  labels: Sequence[str],
  shares: np.ndarray,
  alone: np.ndarray | None,
) -> list[dict[str, Any]]:
  """Adds the scores of each label to the images without an error."""
  good = (answer for answer in answers if "error" not in answer)
  for number, answer in enumerate(good):
    own = [None] * len(labels) if alone is None else alone[number].tolist()
    answer["scores"] = [
      {"label": label, "probability": probability, "softmax": share}
      for label, probability, share in zip(
        labels, own, shares[number].tolist(), strict=True
      )
    ]
  return answers
