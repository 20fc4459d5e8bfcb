"""A decoder at work: sequences written for images, and texts scored.

Shape letters: I images, T texts, N images of a batch, L tokens, K image tokens,
C their width.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
from typing import Any, NamedTuple, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from big_siglip import progress, sharding
from big_siglip.errors import UserError
from big_siglip.losses import token_cross_entropy
from big_siglip.models import make_model
from big_siglip.models.decoder import Decoded
from big_siglip.models.decoding import generate
from big_siglip.objectives.captioning import make_writer, tasks_of
from big_siglip.trained import decoders, inputs

if TYPE_CHECKING:
  from big_siglip.trained.inference import Model

Box = tuple[float, float, float, float]  # y1, x1, y2, x2: shares of the image.
_AT_ONCE = 16  # Texts of an image that are scored together.
_LOGITS = 1024  # Tokens of a device whose logits exist at once.


class Search(NamedTuple):
  """How sequences are looked for.

  Attributes:
    beams: sequences that are kept; 1: the likeliest token each time.
    max_length: tokens to write at most; None: as in training.
    length_penalty: see `decoding.generate`.
  """

  beams: int = 1
  max_length: int | None = None
  length_penalty: float = 1.0

  def check(self) -> None:
    """Raises a UserError that names what cannot be."""
    for name, least in (("beams", 1), ("max_length", 1)):
      value = getattr(self, name)
      if name == "max_length" and value is None:
        continue
      whole = isinstance(value, int) and not isinstance(value, bool)
      if not whole or value < least:
        raise UserError(f"{name}={value!r}: must be a whole number from 1 on")


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
  """

  def __init__(self, model: "Model"):
    """Reads the decoder's parameters.

    Raises:
      UserError: there is none.
    """
    found = decoders.load(model.path, model.mesh)
    self._model, self._decoder = model, found.decoder
    self._params = {"image": model.params, "decoder": found.params}
    config, tokenizer = model.config.model, model.preprocess.tokenizer
    assert tokenizer is not None  # Or there were no texts to train on.
    self.writer = make_writer(found.spec, config, tokenizer)
    self._tasks = tasks_of(found.spec)
    self._compiled: set[tuple] = set()
    self._ids = config.text.vocab_size, found.decoder.vocab_size
    tower, mesh = make_model(config), model.mesh
    whole = sharding.replicated(mesh)

    def see(params: Any, image: jax.Array) -> jax.Array:
      tokens = tower.look(params["image"], {"image": image}).image_tokens
      return tokens.astype(jnp.float32)

    def write(params, context, start, given, allowed, search: Search):
      return generate(
        params["decoder"],
        context,
        start,
        given,
        allowed,
        eos_id=tokenizer.eos_id,
        **search._asdict(),
      )

    def score(params, context, targets, real):
      count = len(context)
      shape = count, *targets.shape
      targets, real = (
        jnp.broadcast_to(x[None], shape) for x in (targets, real)
      )
      decoded = Decoded(
        *self._decoder.apply({"params": params["decoder"]}, targets, context)
      )
      found = token_cross_entropy(
        decoded.hidden,
        decoded.kernel,
        decoded.bias,
        targets,
        real,
        chunk_size=_LOGITS,
        sharding=sharding.batch_sharding(mesh),
      )
      return -found.loss.sum(axis=2)

    self._see = jax.jit(see, out_shardings=sharding.batch_sharding(mesh))
    self._write = jax.jit(write, static_argnums=5, out_shardings=whole)
    self._score = jax.jit(score, out_shardings=whole)

  def batches(
    self, images: Iterable[np.ndarray], size: int
  ) -> Iterator[tuple[jax.Array, int]]:
    """Yields NKC float32 and how many of the N rows count.

    Args:
      images: uint8 [H, W, 3] each, of `Model.prepare_image`.
      size: of a batch.
    """
    devices = sharding.batch_devices(self._model.mesh)
    for batch, count in inputs.padded(images, size):
      batch = np.pad(
        batch, [(0, -len(batch) % devices)] + [(0, 0)] * 3, mode="edge"
      )
      yield self._see(self._params, self._split(batch)), count

  def check_task(self, task: str) -> None:
    """Checks that the decoder has learned a task.

    Raises:
      UserError: it has not.
    """
    if task not in self._tasks:
      raise UserError(
        f"{self._model.path}: its decoder was not trained for {task}, but for "
        + ", ".join(self._tasks)
      )

  def start(
    self, task: str, text: str | None = None, box: Box | None = None
  ) -> Start:
    """Returns how a sequence of a task begins; see `Writer.start`.

    Raises:
      UserError: it leaves no room for anything else.
    """
    ids, most = self.writer.start(task, text, box), self._decoder.length - 2
    if len(ids) > most:
      shown = self.writer.box_text(box) if text is None and box else text
      raise UserError(
        f"{shown!r}: has {len(ids)} tokens with its prefix, and must have "
        f"{most} at most, of config.terms' length={self._decoder.length}"
      )
    skip = len(self.writer.prefix(task)) if task == "caption" else len(ids)
    return Start(task, ids, skip)

  def write(
    self, context: jax.Array, start: Start, search: Search
  ) -> list[Sentence]:
    """Returns what is written of each image.

    Args:
      context: NKC.
      start: of all of them.
      search: how.
    """
    row = np.zeros((len(context), self._decoder.length), np.int32)
    row[:, : len(start.ids)] = start.ids
    given = np.full(len(context), len(start.ids), np.int32)
    arrays = *map(self._split, (row, given)), self._allowed(start.task)
    with self._compiling("decoder", (row.shape, search)):
      written = self._write(self._params, context, *arrays, search)
    ids, scores = jax.device_get((written.ids[:, 0], written.score[:, 0]))
    return [
      Sentence(
        self.writer.read_text(own[start.skip :]),
        self.writer.read_box(own[start.skip :]),
        float(score),
      )
      for own, score in zip(ids, scores, strict=True)
    ]

  def score(self, context: jax.Array, texts: Sequence[str]) -> np.ndarray:
    """Returns NT float32: log-likelihoods of texts as captions."""
    rows = [self.writer.write("caption", text) for text in texts]
    found = []
    for first in range(0, len(rows), _AT_ONCE):
      own = rows[first : first + _AT_ONCE]
      count = len(own)
      if first:  # The last of several takes the others' shape.
        own = own + [own[-1]] * (_AT_ONCE - count)
      targets, weights = (np.stack(x) for x in zip(*own, strict=True))
      with self._compiling("decoder's scores", targets.shape):
        scores = self._score(self._params, context, targets, weights > 0)
      found.append(np.asarray(scores)[:, :count])
    return np.concatenate(found, axis=1)

  def _allowed(self, task: str) -> np.ndarray:
    """Returns V bool: boxes have ids of their own, where they have some."""
    ids, (texts, _) = np.arange(self._ids[1]), self._ids
    if task != "aref" or self.writer.boxes == "text":
      return ids < texts
    end = self.writer.tokenizer.eos_id
    return (ids == end) | ((ids >= texts) & (ids < texts + self.writer.bins))

  @contextlib.contextmanager
  def _compiling(self, what: str, key: tuple) -> Iterator[None]:
    """Says that it takes time, the first time."""
    if (what, key) in self._compiled:
      yield
      return
    with progress.waiting(f"compiling the {what}", f"{what} {key}"):
      yield
    self._compiled.add((what, key))

  def _split(self, rows: np.ndarray) -> jax.Array:
    return sharding.to_global(self._model.mesh, rows)
