"""The studies' two data sets as arrays in memory, and how they are scored.

Shape letters: N examples, C captions an example, L tokens, R trainings at once,
D embedding width.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import tempfile

import numpy as np
import sentencepiece

from big_siglip.command_line import load_config
from big_siglip.data import images
from big_siglip.data.sources import open_source, Source
from big_siglip.data.text import SentencePieceTokenizer, Tokenizer
from big_siglip.datasets.digits import captions, CLASS_NAMES
from big_siglip.evaluators.classification import classifier, nearest_classes
from big_siglip.evaluators.prompts import fill_templates
from big_siglip.evaluators.recall import rank_of_match

ROOT = pathlib.Path(__file__).resolve().parents[1]
NUM_VALIDATION = 240  # Of the digits' 1,437 training scans.
NUM_SCENES = 16_384

# What differs from configs/digits.py and configs/scenes.py: towers of one block
# that see a scan as four patches and a scene as sixteen.
_TOWER = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2}
_SMALL = {
  f"model.{tower}.{field}": value
  for tower in ("image", "text")
  for field, value in _TOWER.items()
}
OVERRIDES = {
  "digits": {
    **_SMALL,
    "model.image.image_size": 8,
    "model.image.patch_size": 4,
    "model.text.length": 8,
    "model.text.vocab_size": 64,
  },
  "scenes": {
    **_SMALL,
    "model.image.image_size": 32,
    "model.image.patch_size": 8,
  },
}


@dataclasses.dataclass(frozen=True)
class Split:
  """Held-out examples.

  Attributes:
    image: NHW3 uint8.
    text: [M, L] int32, what is embedded for the score.
    score: (ND image embeddings, MD text embeddings) -> a number in [0, 1].
  """

  image: np.ndarray
  text: np.ndarray
  score: Callable[[np.ndarray, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Problem:
  """A data set to train on, in memory.

  Attributes:
    image: NHW3 uint8.
    text: NCL int32.
    validation: what learning rates are chosen by.
    test: what is reported.
  """

  image: np.ndarray
  text: np.ndarray
  validation: Split
  test: Split


SCORES = {
  "digits": "zero-shot accuracy on 360 test scans",
  "scenes": "recall@1 among 500 test scenes, mean of both directions",
}


@functools.cache
def problem(name: str) -> Problem:
  """Returns "digits" or "scenes"; the same whenever it is asked for."""
  return {"digits": _digits, "scenes": _scenes}[name]()


def _digits() -> Problem:
  train, test = (open_source("digits", split) for split in ("train", "test"))
  tokenizer = _words_tokenizer()
  size = OVERRIDES["digits"]["model.image.image_size"]
  length = OVERRIDES["digits"]["model.text.length"]
  config = load_config(str(ROOT / "configs" / "digits.py"))
  names = [[name] for name in CLASS_NAMES]
  prompts = fill_templates(config.evals.test.templates, names)
  owners = np.repeat(np.arange(len(names)), list(map(len, prompts)))
  prompts = tokenizer(sum(prompts, []), length)

  def split(pixels, labels):
    def accuracy(image, text):
      classes = classifier(text, owners, len(names))
      nearest = nearest_classes(image, classes, labels[:, None])
      return float(np.mean(nearest.rank == 1))

    return Split(pixels, prompts, accuracy)

  pixels, labels = _pixels(train, size), _labels(train)
  said = np.stack([tokenizer(captions(k), length) for k in range(10)])
  held_out = slice(len(train) - NUM_VALIDATION, None)
  return Problem(
    image=pixels[: held_out.start],
    text=said[labels[: held_out.start]],
    validation=split(pixels[held_out], labels[held_out]),
    test=split(_pixels(test, size), _labels(test)),
  )


def _scenes() -> Problem:
  name = f"scenes/{NUM_SCENES}"
  train, test = (open_source(name, split) for split in ("train", "test"))
  config = load_config(str(ROOT / "configs" / "scenes.py"))
  tokenizer = SentencePieceTokenizer(str(ROOT / config.data.tokenizer))
  size, length = 32, config.model.text.length

  def tokens(source):
    texts = [source[index].texts[0] for index in range(len(source))]
    return tokenizer(texts, length)

  def split(pixels, text):
    ids = np.arange(len(pixels))

    def mean_recall(image, text):
      pairs = ((image, text), (text, image))
      ranks = [rank_of_match(*pair, ids, ids) for pair in pairs]
      to_text, to_image = (float(np.mean(rank < 1)) for rank in ranks)
      return (to_text + to_image) / 2

    return Split(pixels, text, mean_recall)

  pixels, text = _pixels(test, size), tokens(test)
  half = len(test) // 2
  return Problem(
    image=_pixels(train, size),
    text=tokens(train)[:, None],
    validation=split(pixels[:half], text[:half]),
    test=split(pixels[half:], text[half:]),
  )


def _words_tokenizer() -> Tokenizer:
  """Returns a tokenizer with a piece for each word of the digits' captions.

  Seven tokens instead of up to 35 bytes: the studies train a thousand times.
  """
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "words.model"
    with file.open("wb") as stream:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([c for k in range(10) for c in captions(k)]),
        model_writer=stream,
        model_type="word",
        vocab_size=OVERRIDES["digits"]["model.text.vocab_size"],
        hard_vocab_limit=False,
        minloglevel=2,
      )
    return SentencePieceTokenizer(str(file))


def _pixels(source: Source, size: int) -> np.ndarray:
  decoded = (images.decode(source[i].image) for i in range(len(source)))
  return np.stack([images.resize(image, size) for image in decoded])


def _labels(source: Source) -> np.ndarray:
  return np.array([source[index].label for index in range(len(source))])
