"""The preprocessing that published weights were trained with."""

from collections.abc import Mapping
import functools
from typing import Any

from absl import logging

from big_siglip.data.preprocessing import IMAGE_FIELDS, Preprocessing
from big_siglip.data.text import make_tokenizer, Tokenizer
from big_siglip.errors import UserError
from big_siglip.schema.sizes import has_text_tower, resolve_image
from big_siglip.weights import tokenizer_files
from big_siglip.weights.formats import Weights
from big_siglip.weights.image_processor import read_transformers
from big_siglip.weights.image_transforms import read_open_clip, read_timm

# The vocabulary of Gemma, with which all of SigLIP 2 was trained.
_GEMMA = 256_000
_PADDED = 0.9  # Pieces for an embedding, at least.


def find_preprocessing(
  weights: Weights, tokenizer: str | None = None
) -> Preprocessing:
  """Returns it, with the sizes of the weights' own towers.

  What an export of ours says beside the weights (`sidecar`) goes before all
  other files, of which see `find_images` and `find_texts`.

  Args:
    weights: see `open_weights`.
    tokenizer: a SentencePiece model or tokenizer.json; None: the one beside the
      weights.

  Raises:
    UserError: there is no tokenizer, or one of another vocabulary, or what
      happens to images or texts is not done here.
  """
  if not has_text_tower(weights.model):
    return find_image_preprocessing(weights)
  found = {**find_images(weights), **find_texts(weights, tokenizer)}
  try:
    return Preprocessing.from_dict(found)
  except UserError as error:
    raise UserError(f"{weights.reader.path}: {error}") from error


def find_image_preprocessing(weights: Weights) -> Preprocessing:
  """Returns that of images; all that is about texts is None.

  Raises:
    UserError: see `find_images`.
  """
  texts = dict.fromkeys(
    ("text_length", "tokenizer", "lowercase", "clean", "pad_id")
  )
  return Preprocessing.from_dict({**texts, **find_images(weights)})


def find_images(weights: Weights) -> dict[str, Any]:
  """Returns what happens to images: `IMAGE_FIELDS`, as far as they are known.

  Files of the weights' own project go first: see `image_processor` and
  `image_transforms`. Without any, it is what SigLIP was trained or published
  with, which is logged.

  Raises:
    UserError: a file asks for what is not done here, or for another size than
      the image tower has.
  """
  image = weights.model.image
  size = image.image_size
  found = weights.preprocessing
  if "resize" not in found:
    found = _read_images(weights)
    _check_sight(weights, found)
    pixels = found.get("image_size", size)
    if pixels != size:
      raise UserError(
        f"{weights.folder}: its image processor makes images of {pixels} "
        f"pixels, and the model sees {size}"
      )
  if "resize" not in found:
    found = {"resize": _usual_resize(weights)}
    _say(
      f"{weights.reader.path}: no file beside it says what happens to images; "
      f"taken: resize={found['resize']}, squashed, mean and std 0.5"
    )
  known = {name: found[name] for name in IMAGE_FIELDS if name in found}
  if image.max_patches is not None:
    known["max_patches"] = known.get("max_patches", image.max_patches)
    known["patch_size"] = resolve_image(image).patch_size
  return {**known, "image_size": size}


def _check_sight(weights: Weights, found: Mapping[str, Any]) -> None:
  """Checks that an image processor makes patches for who sees patches."""
  image = weights.model.image
  if not found or ("max_patches" in found) == (image.max_patches is not None):
    patch = resolve_image(image).patch_size
    if found.get("patch_size", patch) == patch:
      return
    said = f"makes patches of {found['patch_size']} pixels, and the model sees"
    raise UserError(f"{weights.folder}: its image processor {said} {patch}")
  makes, sees = "squares", "patches that keep an image's shape (NaFlex)"
  if "max_patches" in found:
    makes, sees = sees, makes
  raise UserError(
    f"{weights.folder}: its image processor makes {makes}, and the model sees "
    f"{sees}"
  )


def _read_images(weights: Weights) -> dict[str, Any]:
  if weights.folder is None:
    return {}
  readers = [read_transformers, read_timm, read_open_clip]
  if weights.format == "open_clip":
    readers.reverse()
  return next(filter(None, (read(weights.folder) for read in readers)), {})


def _usual_resize(weights: Weights) -> str:
  """Returns how the model's own project resizes."""
  if weights.format == "big_vision":
    return "big_vision"
  text = weights.model.get("text")
  gemma = text is not None and text.vocab_size == _GEMMA
  return "bilinear" if gemma and weights.format == "huggingface" else "bicubic"


def find_texts(weights: Weights, tokenizer: str | None) -> dict[str, Any]:
  """Returns what happens to texts: all other fields of `Preprocessing`.

  A tokenizer's files beside it are followed: see `tokenizer_files`. What they
  do not say is SigLIP's rule: it lowercases, cleans nothing else and pads with
  the end of a sentence, and SigLIP 2 with 0 (big_vision's pp/ops_text.py and
  pp/proj/paligemma/ops.py).

  Args:
    weights: see `open_weights`.
    tokenizer: see `find_preprocessing`.

  Raises:
    UserError: there is no tokenizer, or one of another vocabulary, or it does
      what is not done here.
  """
  known, text = weights.preprocessing, weights.model.text
  file = tokenizer or known.get("tokenizer") or _find_tokenizer(weights)
  made, found = make_tokenizer(file), {}
  if tokenizer is None and "tokenizer" not in known:
    found = tokenizer_files.read(weights.folder, file, made, text.length)
  _check_vocabulary(file, made, text.vocab_size)
  usual = {
    "lowercase": True,
    "pad_id": 0 if text.vocab_size == _GEMMA else made.eos_id,
  }
  assumed = usual.keys() - found.keys() - known.keys()
  if assumed:
    shown = ", ".join(f"{name}={usual[name]}" for name in sorted(assumed))
    _say(f"{file}: no file beside it says all; taken: {shown}")
  found = {"clean": "none", **usual, **found}
  found |= {name: known[name] for name in found if name in known}
  return {**found, "tokenizer": file, "text_length": text.length}


def _find_tokenizer(weights: Weights) -> str:
  if found := tokenizer_files.find(weights.folder):
    return found
  raise UserError(
    f"{weights.reader.path}: no tokenizer lies beside it "
    f"({', '.join(tokenizer_files.NAMES)}); name one: --tokenizer=FILE.model"
  )


def _check_vocabulary(file: str, made: Tokenizer, embedded: int) -> None:
  pieces = made.vocab_size
  # A few embeddings more are padding, up to a round number. Bytes are named by
  # an export of ours alone, which knows.
  least = 0 if file == "bytes" else _PADDED * embedded
  if least <= pieces <= embedded:
    return
  beyond = [name for name, i in made.vocabulary().items() if i == embedded]
  first = f" ({beyond[0]!r} is the first without one)" if beyond else ""
  raise UserError(
    f"--tokenizer={file}: has {pieces:,} pieces, and the model embeds "
    f"{embedded:,}{first}"
  )


@functools.cache  # A program reads the same weights' files several times.
def _say(line: str) -> None:
  logging.warning("%s", line)
