"""The preprocessing that published weights were trained with."""

import json
import pathlib
from typing import Any

from big_siglip.errors import UserError
from big_siglip.weights.formats import Weights

# The vocabulary of Gemma, with which all of SigLIP 2 was trained.
_GEMMA = 256_000
# Pillow's numbers, as in preprocessor_config.json.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}


def find_preprocessing(
  weights: Weights, tokenizer: str | None = None
) -> dict[str, Any]:
  """Returns `config.data`'s tokenizer, lowercase, pad_id and resize.

  SigLIP pads with 1, the end of a sentence, and SigLIP 2 with 0 (big_vision's
  pp/ops_text.py and pp/proj/paligemma/ops.py); both lowercase. The resizing is
  that of preprocessor_config.json, or big_vision's for its own files.

  Args:
    weights: see `open_weights`.
    tokenizer: a SentencePiece model file; None: the one beside the weights.

  Raises:
    UserError: there is no tokenizer, or the resizing is not known.
  """
  if tokenizer is None:
    tokenizer = _find_tokenizer(weights)
  resize = "big_vision" if weights.format == "big_vision" else "bicubic"
  if weights.folder is not None:
    config = weights.folder / "preprocessor_config.json"
    if config.is_file():
      resize = _resize(config)
  return {
    "tokenizer": tokenizer,
    "lowercase": True,
    "pad_id": 0 if weights.model.text.vocab_size == _GEMMA else 1,
    "resize": resize,
  }


def _find_tokenizer(weights: Weights) -> str:
  names = ("spiece.model", "tokenizer.model", "sentencepiece.model")
  for name in names if weights.folder else ():
    if (weights.folder / name).is_file():
      return str(weights.folder / name)
  raise UserError(
    f"{weights.reader.path}: no tokenizer lies beside it ({', '.join(names)}); "
    "name one: --tokenizer=FILE.model"
  )


def _resize(config: pathlib.Path) -> str:
  try:
    resample = json.loads(config.read_text()).get("resample", 3)
  except (ValueError, AttributeError) as error:
    raise UserError(f"{config}: is no JSON object ({error})") from error
  if resample not in _RESAMPLE:
    raise UserError(
      f"{config}: resample={resample!r}: must be 2 (bilinear) or 3 (bicubic)"
    )
  return _RESAMPLE[resample]
