"""The one thread that uses the model: requests take turns on the device.

Shape letters: I images, T texts, E embedding width.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
import functools
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from big_siglip import progress
from big_siglip.data.images import BadImage
from big_siglip.errors import UserError
from big_siglip.page.limits import decode, Limits
from big_siglip.trained.inference import Model
from big_siglip.trained.scoring import of_classes, sigmoid

_T = TypeVar("_T")


class Busy(RuntimeError):
  """Too many requests wait already."""


class File(NamedTuple):
  """An uploaded image."""

  name: str
  size: int
  content: BinaryIO


class Scorer:
  """Scores images and texts, one request after the other."""

  def __init__(self, model: Model, limits: Limits):
    """Starts no thread yet.

    Args:
      model: of `big_siglip.load`.
      limits: of the images, and of how many requests may wait.
    """
    self._model, self._limits = model, limits
    self._pool = ThreadPoolExecutor(1, "device")
    self._waiting = 0
    self._seen: set[tuple[str, int]] = set()
    self._compiling = ""
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
    """What the model is at: what is compiled, "" if nothing, and who waits."""
    return {"compiling": self._compiling, "waiting": self._waiting}

  def start(self, job: Callable[[], Any]) -> None:
    """Does a job before all requests that come from now on."""
    self._pool.submit(job)

  def warm_up(self) -> None:
    """Compiles what one image and one text take."""
    size = self._model.config.model.image.image_size
    image = np.zeros((size, size, 3), np.uint8)
    with progress.waiting("compiling both towers"):
      self._embed_images([image])
      self._embed_names((("a",),))

  @property
  def calibration(self) -> dict[str, Any] | None:
    """What scale and bias were fitted on, where they are not the trained."""
    found = self._model.calibration
    return found and {"data": found.data, "images": found.images}

  @property
  def logit_scale(self) -> float:
    """The multiplier of a cosine."""
    return self._model.logit_scale

  @property
  def logit_bias(self) -> float | None:
    """What is added to it, if that was trained."""
    return self._model.logit_bias if self.has_sigmoid else None

  @property
  def has_sigmoid(self) -> bool:
    """Whether there are probabilities of each pair on its own."""
    return self._model.has_trained_bias

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
    answers, images = self._read(files)
    if not images:
      return answers
    rows, classes = self._embed_images(images), self._embed_labels(labels)
    for own, finite in zip(labels, _finite(classes), strict=True):
      if not finite:
        raise UserError(f"label {own[0]!r}: its embedding is not finite")
    good = [answer for answer in answers if "error" not in answer]
    for answer, finite in zip(good, _finite(rows), strict=True):
      if not finite:
        answer["error"] = "its embedding is not finite"
    logits = self._logits(rows[_finite(rows)] @ classes.T)
    softmax = np.exp(logits - np.logaddexp.reduce(logits, 1, keepdims=True))
    scores = iter(zip(sigmoid(logits), softmax, strict=True))
    for answer in answers:
      if "error" not in answer:
        columns = (row.tolist() for row in next(scores))
        answer["scores"] = [
          {
            "label": own[0],
            "probability": probability if self.has_sigmoid else None,
            "softmax": share,
          }
          for own, probability, share in zip(labels, *columns, strict=True)
        ]
    return answers

  def _read(
    self, files: Sequence[File]
  ) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Returns the name of each, with what is wrong; and the good ones."""
    answers, images = [], []
    for file in files:
      try:
        images.append(self._prepare(file))
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

  def embed_query(
    self, files: Sequence[File], texts: Sequence[str], others: np.ndarray
  ) -> np.ndarray:
    """Returns [1, E]: the mean of all, of length 1.

    Args:
      files: images.
      texts: texts.
      others: NE, what was embedded before.

    Raises:
      UserError: an image cannot be read, or nothing is left of them all.
    """
    if len(texts) == 1 and not files and not len(others):
      return self._embed_labels(((texts[0],),))
    answers, embedded = self.embed(files, texts)
    for answer in answers:
      if "error" in answer:
        raise UserError(f"{answer['name']}: {answer['error']}")
    rows = [answer["embedding"] for answer in answers]
    mean = np.mean([*rows, *embedded, *others], axis=0, keepdims=True)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
      raise UserError("query: its parts cancel each other out")
    return mean / length

  def probability(self, cosine: float) -> float | None:
    """Returns how likely a pair belongs together, if the model can say."""
    return float(sigmoid(self._logits(cosine))) if self.has_sigmoid else None

  def _logits(self, cosines: np.ndarray) -> np.ndarray:
    return self._model.logit_scale * cosines + self._model.logit_bias

  def _prepare(self, file: File) -> np.ndarray:
    limit = self._limits.image_bytes
    if file.size > limit:
      raise BadImage(f"is larger than {limit // 2**20} MB")
    resize = self._model.config.data.resize
    image = decode(file.content.read(), self._limits, resize)
    return self._model.prepare_image(image)

  def _embed_images(self, images: list[np.ndarray]) -> np.ndarray:
    padded = self._pad(images)
    with self._first_time("images", len(padded)):
      return self._model.embed_prepared(padded)[: len(images)]

  def _embed_texts(self, texts: list[str]) -> np.ndarray:
    padded = self._pad(texts)
    with self._first_time("texts", len(padded)):
      return self._model.embed_texts(padded)[: len(texts)]

  def _embed_names(self, labels: tuple[tuple[str, ...], ...]) -> np.ndarray:
    rows = self._embed_texts([name for own in labels for name in own])
    return of_classes(rows, list(map(len, labels)))

  @contextlib.contextmanager
  def _first_time(self, kind: str, count: int) -> Iterator[None]:
    """Says that a batch of a new size is compiled, as long as that takes."""
    shape = kind, min(count, self._model.batch_size)
    if shape not in self._seen:
      self._compiling = f"for batches of {shape[1]} {kind}"
    try:
      yield
      self._seen.add(shape)
    finally:
      self._compiling = ""

  def _pad(self, rows: list[_T]) -> list[_T]:
    """Repeats the last row up to a power of two: few shapes to compile."""
    size = self._model.batch_size
    if len(rows) >= size:
      return rows
    count = min(size, 1 << (len(rows) - 1).bit_length())
    return rows + rows[-1:] * (count - len(rows))


def _finite(rows: np.ndarray) -> np.ndarray:
  return np.isfinite(rows).all(axis=1)
