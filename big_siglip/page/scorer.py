"""The one thread that uses the model: requests take turns on the device.

Shape letters: I images, T texts, E embedding width.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from big_siglip.data.images import BadImage
from big_siglip.page.limits import decode, Limits
from big_siglip.trained.inference import Model, sigmoid

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
    # Most requests ask for the labels of the last one again.
    self._embed_labels = functools.lru_cache(maxsize=8)(self._embed_texts)

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

  def classify(
    self, files: Sequence[File], labels: Sequence[str]
  ) -> list[dict[str, Any]]:
    """Returns each image's scores in the labels' order, or what is wrong.

    Args:
      files: images.
      labels: no two the same.
    """
    answers, images = [], []
    for file in files:
      try:
        images.append(self._prepare(file))
        answers.append({"name": file.name})
      except BadImage as error:
        answers.append({"name": file.name, "error": str(error)})
    if not images:
      return answers
    cosines = self._embed_images(images) @ self._embed_labels(tuple(labels)).T
    logits = self._logits(cosines)
    softmax = np.exp(logits - np.logaddexp.reduce(logits, 1, keepdims=True))
    scores = iter(zip(sigmoid(logits), softmax, strict=True))
    for answer in answers:
      if "error" not in answer:
        rows = zip(labels, *(row.tolist() for row in next(scores)), strict=True)
        answer["scores"] = [
          {"label": label, "probability": probability, "softmax": share}
          for label, probability, share in rows
        ]
    return answers

  def embed_query(self, text: str) -> np.ndarray:
    """Returns [1, E]."""
    return self._embed_labels((text,))

  def probabilities(self, cosines: np.ndarray) -> np.ndarray:
    """Returns how likely pairs of these cosines belong together."""
    return sigmoid(self._logits(cosines))

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
    return self._model.embed_images(self._pad(images))[: len(images)]

  def _embed_texts(self, texts: tuple[str, ...]) -> np.ndarray:
    return self._model.embed_texts(self._pad(list(texts)))[: len(texts)]

  def _pad(self, rows: list[_T]) -> list[_T]:
    """Repeats the last row up to a power of two: few shapes to compile."""
    size = self._model.batch_size
    if len(rows) >= size:
      return rows
    count = min(size, 1 << (len(rows) - 1).bit_length())
    return rows + rows[-1:] * (count - len(rows))
