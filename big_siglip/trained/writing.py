"""A decoder at work: sequences written for images, and texts scored.

Shape letters: I images, T texts, N images of a batch, L tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TYPE_CHECKING

import jax
import numpy as np

from big_siglip import sharding
from big_siglip.data.batch import Image
from big_siglip.errors import UserError
from big_siglip.evaluators.scribe import Context, Scribe, Search
from big_siglip.trained import decoders, inputs

if TYPE_CHECKING:
  from big_siglip.trained.inference import Model

Box = tuple[float, float, float, float]  # y1, x1, y2, x2: shares of the image.
_AT_ONCE = 16  # Texts of an image that are scored together.


class Start(NamedTuple):
  """How a sequence begins.

  Attributes:
    task: of `targets.TASKS`.
    ids: that are given.
    skip: how many of them are no part of the text that is read.
  """

  task: str
  ids: Sequence[int]
  skip: int


class Sentence(NamedTuple):
  """One sequence that was written.

  Attributes:
    text: of it, without prefix and box.
    box: that it ends with; None: it ends with none.
    score: the logarithm of the probability of what was written.
  """

  text: str
  box: Box | None
  score: float


class Captioner:
  """A model's decoder, ready to write.

  Attributes:
    writer: how sequences are written and read.
    tasks: that the decoder has learned, of `targets.TASKS`.
  """

  def __init__(self, model: "Model"):
    """Reads the decoder's parameters.

    Raises:
      UserError: there is none.
    """
    found = decoders.load(model.path, model.mesh)
    self._model, tokenizer = model, model.preprocess.tokenizer
    assert tokenizer is not None  # Or there were no texts to train on.
    self._scribe = Scribe(
      model.config.model, found.name, found.spec, tokenizer, model.mesh
    )
    self._params = {**model.params, found.name: found.params}
    self.writer, self.tasks = self._scribe.writer, self._scribe.tasks

  def batches(
    self, images: Iterable[Image], size: int
  ) -> Iterator[tuple[Context, int]]:
    """Yields what the decoder looks at, and how many of its N rows count.

    Args:
      images: of `Model.prepare_image`.
      size: of a batch.
    """
    devices = sharding.batch_devices(self._model.mesh)
    for batch, count in inputs.padded(images, size):
      batch = jax.tree.map(lambda rows: _padded(rows, devices), batch)
      yield self._scribe.see(self._params, batch, {})[0], count

  def check_task(self, task: str) -> None:
    """Checks that the decoder has learned a task.

    Raises:
      UserError: it has not.
    """
    self._scribe.check_task(task, self._model.path)

  def start(
    self, task: str, text: str | None = None, box: Box | None = None
  ) -> Start:
    """Returns how a sequence of a task begins; see `Writer.start`.

    Raises:
      UserError: it leaves no room for anything else.
    """
    ids, most = self.writer.start(task, text, box), self._scribe.length - 2
    if len(ids) > most:
      shown = self.writer.box_text(box) if text is None and box else text
      raise UserError(
        f"{shown!r}: has {len(ids)} tokens with its prefix, and must have "
        f"{most} at most, of config.terms' length={self._scribe.length}"
      )
    skip = len(self.writer.prefix(task)) if task == "caption" else len(ids)
    return Start(task, ids, skip)

  def write(
    self, context: Context, start: Start, search: Search
  ) -> list[Sentence]:
    """Returns what is written of each image.

    Args:
      context: of N images.
      start: of all of them.
      search: how.
    """
    starts = [start.ids] * len(context.tokens)
    ids, scores = self._scribe.write(
      self._params, context, starts, start.task, search
    )
    return [
      Sentence(
        self.writer.read_text(own[start.skip :]),
        self.writer.read_box(own[start.skip :]),
        float(score),
      )
      for own, score in zip(ids, scores, strict=True)
    ]

  def score(self, context: Context, texts: Sequence[str]) -> np.ndarray:
    """Returns NT float32: log-likelihoods of texts as captions."""
    rows = [self.writer.write("caption", text) for text in texts]
    found = []
    for first in range(0, len(rows), _AT_ONCE):
      own = rows[first : first + _AT_ONCE]
      count = len(own)
      if first:  # The last of several takes the others' shape.
        own = own + [own[-1]] * (_AT_ONCE - count)
      every = (np.stack(x) for x in zip(*own, strict=True))
      targets, weights = (
        np.broadcast_to(x[None], (len(context.tokens), *x.shape)) for x in every
      )
      scores = self._scribe.score(self._params, context, targets, weights)
      found.append(scores[:, :count])
    return np.concatenate(found, axis=1)


def _padded(rows: np.ndarray, multiple: int) -> np.ndarray:
  """Returns rows up to a multiple; the last one is repeated."""
  surplus = [(0, -len(rows) % multiple)] + [(0, 0)] * (rows.ndim - 1)
  return np.pad(rows, surplus, mode="edge")
