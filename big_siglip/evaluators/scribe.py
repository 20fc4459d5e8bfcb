"""A decoder at work beside the image tower that it looks at.

Sequences are written for images, and given ones scored. All is computed in
float32.

Shape letters: N images of all processes, n of this one, L tokens, T sequences
of an image, K image tokens, C their width, V ids.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import progress, sharding
from big_siglip.data.batch import Image
from big_siglip.data.text import Tokenizer
from big_siglip.errors import UserError
from big_siglip.evaluators.embed import Rows
from big_siglip.losses import token_cross_entropy
from big_siglip.models import make_model, restack
from big_siglip.models.decoder import Decoded
from big_siglip.models.decoding import generate
from big_siglip.objectives import captioning, term_views

_KIND = "captioning"
_LOGITS = 1024  # Tokens of a device whose logits exist at once.


class Context(NamedTuple):
  """What a decoder looks at.

  Attributes:
    tokens: NKC float32.
    mask: NK bool, true for tokens of patches; None: all are.
  """

  tokens: jax.Array
  mask: jax.Array | None


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


def find_decoder(config: Mapping[str, Any]) -> tuple[str, Any] | None:
  """Returns name and section of the decoder of a run's config, if it has one.

  `schema.terms` lets it have no two.
  """
  terms = config.get("terms", {})
  found = (name for name in terms if terms[name].kind == _KIND)
  return next(((name, terms[name]) for name in found), None)


class Scribe:
  """Writes and scores with the parameters that it is given.

  These are a model's, with those of its decoder under the name of its section
  of `config.terms`; blocks may be stacked or not.

  Attributes:
    name: of the section.
    spec: the section.
    writer: how sequences are written and read.
    tasks: that the decoder was trained for.
    length: L.
  """

  def __init__(
    self,
    model: ConfigDict,
    name: str,
    spec: Any,
    tokenizer: Tokenizer,
    mesh: Mesh,
  ):
    """Compiles nothing yet.

    Args:
      model: `config.model` as it is evaluated; see `embed.exact_model`.
      name: of the decoder's section.
      spec: the section.
      tokenizer: of the run.
      mesh: on which the parameters lie.
    """
    self.name, self.spec, self._mesh = name, spec, mesh
    self.writer = term_views.make_writer(spec, model, tokenizer)
    self.tasks = captioning.tasks_of(spec)
    plain = ConfigDict(model).copy_and_resolve_references()
    plain.update(dtype="float32", scan=True, remat="none", attention="xla")
    self._decoder = captioning.make_decoder(spec, plain)
    self.length = self._decoder.length
    self._ids = model.text.vocab_size, self._decoder.vocab_size
    self._compiled: set[tuple] = set()
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    tower, eos_id = make_model(model), tokenizer.eos_id

    def see(params, image, labels):
      batch = image if isinstance(image, Mapping) else {"image": image}
      seen = tower.look(params, batch)
      tokens = seen.image_tokens.astype(jnp.float32)
      return Context(tokens, seen.image_mask), labels

    def write(params, context: Context, start, given, allowed, search: Search):
      found = generate(
        self._own(params),
        *(context.tokens, start, given, allowed),
        eos_id=eos_id,
        mask=context.mask,
        **search._asdict(),
      )
      return found.ids[:, 0], found.score[:, 0]

    def score(params, context: Context, targets, real):
      decoder = {"params": self._own(params)}
      decoded = Decoded(*self._decoder.apply(decoder, targets, *context))
      found = token_cross_entropy(
        *decoded, targets, real, chunk_size=_LOGITS, sharding=split
      )
      return -found.loss.sum(axis=2)

    self._see = jax.jit(see, out_shardings=(split, whole))
    self._write = jax.jit(write, static_argnums=5, out_shardings=whole)
    self._score = jax.jit(score, out_shardings=whole)

  def _own(self, params: Any) -> Any:
    """Returns the decoder's parameters, with stacked blocks."""
    return restack({self.name: params[self.name]}, True)[self.name]

  def check_task(self, task: str, where: str) -> None:
    """Raises a UserError where the decoder has not learned a task."""
    if task not in self.tasks:
      raise UserError(
        f"{where}: its decoder was not trained for {task}, but for "
        + ", ".join(self.tasks)
      )

  def see(
    self, params: Any, image: Image, labels: Mapping[str, Any]
  ) -> tuple[Context, dict[str, np.ndarray]]:
    """Returns what the decoder looks at, of N images, and labels of all.

    Args:
      params: of the model, with the decoder's.
      image: uint8 [n, H, W, 3], or n sequences of patches; N is a multiple of
        the devices of a batch.
      labels: arrays of one value an image, [n].
    """
    arrays = self._split((image, dict(labels)))
    shape = str(jax.tree.map(np.shape, image))
    with self._compiling("the image tower", shape):
      context, labels = self._see(params, *arrays)
    return context, jax.device_get(labels)

  def write(
    self,
    params: Any,
    context: Context,
    starts: Sequence[Sequence[int]],
    task: str,
    search: Search,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Writes a sequence for each image.

    Args:
      params: as for `see`.
      context: of N images.
      starts: the ids that n sequences begin with.
      task: of `targets.TASKS`.
      search: how to look for them.

    Returns:
      NL int32: ids with what was given, and the end; N float32: the logarithm
      of the probability of what was written.
    """
    rows = np.zeros((len(starts), self.length), np.int32)
    for row, ids in zip(rows, starts, strict=True):
      row[: len(ids)] = ids
    given = np.array([len(ids) for ids in starts], np.int32)
    arrays = self._split((rows, given))
    with self._compiling("the decoder", (rows.shape, search)):
      found = self._write(params, context, *arrays, self._allowed(task), search)
    return jax.device_get(found)

  def score(
    self,
    params: Any,
    context: Context,
    targets: np.ndarray,
    weights: np.ndarray,
  ) -> np.ndarray:
    """Returns NT float32: the logarithms of the probabilities of sequences.

    Args:
      params: as for `see`.
      context: of N images.
      targets: int32 [n, T, L], of `Writer.write`.
      weights: float32 [n, T, L]; tokens without one count for nothing.
    """
    arrays = self._split((targets, weights > 0))
    with self._compiling("the decoder's scores", targets.shape):
      return jax.device_get(self._score(params, context, *arrays))

  def _allowed(self, task: str) -> np.ndarray:
    """Returns V bool: boxes have ids of their own, where they have some."""
    ids, (texts, _) = np.arange(self._ids[1]), self._ids
    if task != "aref" or self.writer.boxes == "text":
      return ids < texts
    end = self.writer.tokenizer.eos_id
    return (ids == end) | ((ids >= texts) & (ids < texts + self.writer.bins))

  @contextlib.contextmanager
  def _compiling(self, what: str, key: Any) -> Iterator[None]:
    """Says that it takes time, the first time."""
    if (what, key) in self._compiled:
      yield
      return
    with progress.waiting(f"compiling {what}", f"{what} {key}"):
      yield
    self._compiled.add((what, key))

  def _split(self, rows: Any) -> Any:
    return sharding.to_global(self._mesh, rows)


class Pass(NamedTuple):
  """A batch of images that a decoder looks at.

  Attributes:
    context: of all processes' images.
    own: the numbers of this process's images; of padding that of the first.
    number: of all processes' images, [N].
    mask: which of these are images, [N].
  """

  context: Any
  own: np.ndarray
  number: np.ndarray
  mask: np.ndarray


def passes(images: Rows, scribe: Scribe, params: Any) -> Iterator[Pass]:
  """Yields batches of images that a decoder looks at.

  Args:
    images: padded batches with "image", "index" and "mask".
    scribe: of the decoder.
    params: of the model, with the decoder's.
  """
  with progress.Progress(images.count, "images") as show:
    for batch in images.batches():
      labels = {name: batch[name] for name in ("index", "mask")}
      context, labels = scribe.see(params, batch["image"], labels)
      own = np.where(batch["mask"], batch["index"], 0)
      yield Pass(context, own, labels["index"], labels["mask"])
      show.add(int(labels["mask"].sum()))


def perplexity(log_probability: float, tokens: float) -> float:
  """Returns e to the power of a token's mean surprise; NaN without tokens."""
  return math.exp(-log_probability / tokens) if tokens else math.nan
