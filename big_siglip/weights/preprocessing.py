"""The preprocessing that published weights were trained with."""

import pathlib
from typing import Any

from big_siglip.data.preprocessing import Preprocessing
from big_siglip.data.text import make_tokenizer
from big_siglip.errors import UserError
from big_siglip.schema.sizes import has_text_tower
from big_siglip.weights.formats import Weights
from big_siglip.weights.tensors import read_json

# The vocabulary of Gemma, with which all of SigLIP 2 was trained.
_GEMMA = 256_000
# Pillow's numbers, as in preprocessor_config.json.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
_PADDED = 0.9  # Pieces for an embedding, at least.


def find_preprocessing(
  weights: Weights, tokenizer: str | None = None
) -> Preprocessing:
  """Returns it, with the sizes of the weights' own towers.

  SigLIP pads with 1, the end of a sentence, and SigLIP 2 with 0 (big_vision's
  pp/ops_text.py and pp/proj/paligemma/ops.py), unless tokenizer_config.json
  names another token; both lowercase and clean nothing else. The resizing is
  that of preprocessor_config.json, or big_vision's for its own files. What an
  export of ours says beside the weights (`sidecar`) goes before all that.

  Args:
    weights: see `open_weights`.
    tokenizer: a SentencePiece model or tokenizer.json; None: the one beside the
      weights.

  Raises:
    UserError: there is no tokenizer, or one of another vocabulary, or what
      happens to images is not known here.
  """
  known = weights.preprocessing
  if not has_text_tower(weights.model):
    return _of_image_tower(weights)
  pad_id = 0 if weights.model.text.vocab_size == _GEMMA else 1
  beside = tokenizer is None
  if beside:
    tokenizer = known.get("tokenizer") or _find_tokenizer(weights)
  _check_vocabulary(tokenizer, weights)
  if beside and weights.folder is not None and "pad_id" not in known:
    pad_id = _pad_id(weights.folder, tokenizer, pad_id)
  image = _image_fields(weights)
  found = {"lowercase": True, "pad_id": pad_id, **image, **known}
  found["tokenizer"] = tokenizer
  found["image_size"] = weights.model.image.image_size
  found["text_length"] = weights.model.text.length
  try:
    return Preprocessing.from_dict(found)
  except UserError as error:
    raise UserError(f"{weights.reader.path}: {error}") from error


def _of_image_tower(weights: Weights) -> Preprocessing:
  """Returns the preprocessing of images, where there is no text tower."""
  texts = ("text_length", "tokenizer", "lowercase", "clean", "pad_id")
  found = {**_image_fields(weights), **weights.preprocessing}
  found["image_size"] = weights.model.image.image_size
  try:
    return Preprocessing.from_dict({**found, **dict.fromkeys(texts)})
  except UserError as error:
    raise UserError(f"{weights.reader.path}: {error}") from error


def _image_fields(weights: Weights) -> dict[str, Any]:
  if weights.folder is not None:
    config = weights.folder / "preprocessor_config.json"
    if config.is_file():
      return _image_processor(config)
  resize = "big_vision" if weights.format == "big_vision" else "bicubic"
  return {"resize": resize}


def _find_tokenizer(weights: Weights) -> str:
  names = (
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.model",
    "tokenizer.json",
  )
  for name in names if weights.folder else ():
    if (weights.folder / name).is_file():
      return str(weights.folder / name)
  raise UserError(
    f"{weights.reader.path}: no tokenizer lies beside it ({', '.join(names)}); "
    "name one: --tokenizer=FILE.model"
  )


def _check_vocabulary(tokenizer: str, weights: Weights) -> None:
  pieces = make_tokenizer(tokenizer).vocab_size
  embedded = weights.model.text.vocab_size
  # A few embeddings more are padding, up to a round number. Bytes are named by
  # an export of ours alone, which knows.
  least = 0 if tokenizer == "bytes" else _PADDED * embedded
  if not least <= pieces <= embedded:
    raise UserError(
      f"--tokenizer={tokenizer}: has {pieces:,} pieces, and the model embeds "
      f"{embedded:,}"
    )


def _pad_id(folder: pathlib.Path, tokenizer: str, default: int) -> int:
  config = folder / "tokenizer_config.json"
  token = read_json(config).get("pad_token") if config.is_file() else None
  if isinstance(token, dict):  # With the token's properties.
    token = token.get("content")
  number = token and make_tokenizer(tokenizer).token_id(token)
  return default if number is None else number


def _image_processor(config: pathlib.Path) -> dict[str, Any]:
  """Returns resize, crop, mean and std of transformers' image processor."""
  found = read_json(config)
  resample = found.get("resample", 3)
  if type(resample) is not int or resample not in _RESAMPLE:
    raise UserError(
      f"{config}: resample={resample!r}: must be 2 (bilinear) or 3 (bicubic)"
    )
  image = {"resize": _RESAMPLE[resample]}
  for field, theirs in (("mean", "image_mean"), ("std", "image_std")):
    value = found.get(theirs)
    if value is not None:
      image[field] = value if isinstance(value, list) else 3 * [value]
  if found.get("do_center_crop"):
    image["crop"] = "center"
  return image
