"""Trains a SentencePiece tokenizer on the captions of any data set.

big-siglip tokenizer --data=folder --path=PHOTOS --split=train \
  --vocab_size=8000 --output=models/mine.model
big-siglip train --config=configs/folder.py --config.data.path=PHOTOS \
  --config.data.tokenizer=models/mine.model --config.model.text.vocab_size=8000

--data, --path and --split are those of config.data. Captions are streamed, and
prepared as in training (--clean, --lowercase; see config.data). Ids are those
of SigLIP's c4_en: <pad> 0, </s> 1, <unk> 2.
"""

import json
import pathlib

from absl import flags, logging

from big_siglip import progress
from big_siglip.errors import exit_on_error, naming, UserError
from big_siglip.schema.words import CLEANINGS

_DATA = flags.DEFINE_string("data", "folder", "As config.data.name.")
_PATH = flags.DEFINE_string("path", None, "As config.data.path.")
_SPLIT = flags.DEFINE_string("split", "train", "As config.data.split.")
_OUTPUT = flags.DEFINE_string("output", None, "The .model file to write.")
_VOCAB_SIZE = flags.DEFINE_integer(
  "vocab_size", 32_000, "Pieces, with special ones and bytes."
)
_MODEL_TYPE = flags.DEFINE_string("model_type", "unigram", "Or bpe.")
_LOWERCASE = flags.DEFINE_bool("lowercase", True, "As config.data.lowercase.")
_CLEAN = flags.DEFINE_string("clean", "none", "As config.data.clean.")
_BYTE_FALLBACK = flags.DEFINE_bool(
  "byte_fallback", True, "Write what has no piece as bytes, not as <unk>."
)
_COVERAGE = flags.DEFINE_float(
  "character_coverage", 0.9995, "Share of the characters that get pieces."
)
_MAX_CAPTIONS = flags.DEFINE_integer(
  "max_captions", 2_000_000, "A random sample of so many is kept in memory."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_MODEL_TYPES = ("unigram", "bpe")
_FIELDS = {
  "config.data.name": "--data",
  "config.data.path": "--path",
  "config.data.split": "--split",
}


def main(argv: list[str]) -> None:
  """Trains, and prints what was made."""
  logging.set_verbosity(logging.WARNING)
  with exit_on_error():
    _check_flags(argv[1:])
    output = pathlib.Path(_OUTPUT.value).expanduser()
    if output.exists():
      raise UserError(f"--output={output}: exists already")
    with progress.loading():
      from big_siglip.data import vocabulary
      from big_siglip.data.sources import open_source
      from big_siglip.data.text import make_tokenizer

    with naming(_FIELDS), progress.waiting("opening the data"):
      source = open_source(_DATA.value, _SPLIT.value, _PATH.value)
    captions = vocabulary.Captions(source, _CLEAN.value, _LOWERCASE.value)
    with progress.waiting("learning pieces"):  # Once the captions are read.
      vocabulary.train(
        captions,
        output,
        vocab_size=_VOCAB_SIZE.value,
        model_type=_MODEL_TYPE.value,
        byte_fallback=_BYTE_FALLBACK.value,
        character_coverage=_COVERAGE.value,
        max_captions=_MAX_CAPTIONS.value,
      )
    tokenizer = make_tokenizer(str(output), _LOWERCASE.value)
  answer = {
    "output": str(output),
    "captions": captions.count,
    "skipped": captions.skipped,
    "vocab_size": tokenizer.vocab_size,
    "eos_id": tokenizer.eos_id,
  }
  if _JSON.value:
    print(json.dumps(answer))
    return
  for name, value in answer.items():
    print(f"{name:12} {value}")


def _check_flags(arguments: list[str]) -> None:
  if arguments:
    raise UserError(f"{arguments[0]!r}: belongs to no flag")
  if not _OUTPUT.value:
    raise UserError("--output=FILE.model must be given")
  for flag, allowed in ((_MODEL_TYPE, _MODEL_TYPES), (_CLEAN, CLEANINGS)):
    if flag.value not in allowed:
      names = ", ".join(allowed)
      raise UserError(f"--{flag.name}={flag.value}: must be one of {names}")
  # SentencePiece draws no smaller samples, and its numbers have 32 bits.
  for flag, least in ((_VOCAB_SIZE, 1), (_MAX_CAPTIONS, 101)):
    if not least <= flag.value < 2**31:
      raise UserError(
        f"--{flag.name}={flag.value}: must be in {least} to {2**31 - 1}"
      )
  if not 0 < _COVERAGE.value <= 1:
    raise UserError(
      f"--character_coverage={_COVERAGE.value}: must lie in (0, 1]"
    )
