"""Turns captions into token ids of one fixed length, by SigLIP's rules.

The rules are those of the `tokenize` op of google-research/big_vision
(pp/ops_text.py), which trained the published weights: lowercase, append EOS,
no BOS; a text of `length` tokens or more keeps its first `length` - 1 and EOS
("sticky"), a shorter one is padded on the right.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import re
import string

import numpy as np
import sentencepiece

from big_siglip.errors import UserError

_REMOVE_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
  """UTF-8 bytes as tokens: needs no file and knows every language.

  The ids are those of ByT5 (arXiv:2105.13626, section 3): 0 pad, 1 EOS,
  2 unknown (never produced), then the 256 bytes.
  """

  lowercase: bool = True
  pad_id: int = 1  # EOS, as SigLIP pads; 0 as SigLIP 2 does.

  eos_id = 1
  vocab_size = 3 + 256

  def __post_init__(self):
    _check_pad_id(self.pad_id, self.vocab_size)

  def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
    """Returns int32 [len(texts), length]."""
    texts = [_lowercase(t) if self.lowercase else t for t in texts]
    ids = [[byte + 3 for byte in t.encode("utf-8")] for t in texts]
    return _pad(ids, length, self.eos_id, self.pad_id)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids [length] up to the first EOS or padding."""
    ids = _until_end(ids, self.eos_id, self.pad_id)
    return bytes(i - 3 for i in ids if i >= 3).decode("utf-8", "replace")


class SentencePieceTokenizer:
  """A SentencePiece model file, such as SigLIP's c4_en or SigLIP 2's Gemma.

  Attributes:
    vocab_size: the number of pieces.
    eos_id: the id of the end-of-sentence piece.
    pad_id: what fills the end: 1 for SigLIP, 0 for SigLIP 2.
    lowercase: whether A-Z become a-z first.
  """

  def __init__(self, path: str, *, lowercase: bool = True, pad_id: int = 1):
    """Reads the model.

    Raises:
      UserError: `path` is missing, not SentencePiece or has no EOS piece, or
        `pad_id` is not an id of it.
    """
    field = f"config.data.tokenizer={str(path)!r}"
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
      raise UserError(f"{field}: no such file; must be bytes or a .model file")
    self._model = file.read_bytes()
    self.lowercase = lowercase
    self.pad_id = pad_id
    try:
      self._load()
    except RuntimeError as e:
      raise UserError(f"{field}: is not a SentencePiece model") from e
    if self.eos_id < 0:
      raise UserError(f"{field}: must have an end-of-sentence piece")
    _check_pad_id(pad_id, self.vocab_size)

  def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
    """Returns int32 [len(texts), length]."""
    texts = [_lowercase(t) if self.lowercase else t for t in texts]
    ids = self._processor.encode(texts)
    return _pad(ids, length, self.eos_id, self.pad_id)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids [length] up to the first EOS or padding."""
    return self._processor.decode(_until_end(ids, self.eos_id, self.pad_id))

  def __getstate__(self) -> dict[str, object]:
    return dict(
      _model=self._model, lowercase=self.lowercase, pad_id=self.pad_id
    )

  def __setstate__(self, state: dict[str, object]) -> None:
    self.__dict__.update(state)
    self._load()

  def _load(self) -> None:
    if not self._model:  # An empty model loads, and crashes when used.
      raise RuntimeError("empty")
    self._processor = sentencepiece.SentencePieceProcessor()
    self._processor.LoadFromSerializedProto(self._model)
    self.vocab_size = self._processor.vocab_size()
    self.eos_id = self._processor.eos_id()


Tokenizer = ByteTokenizer | SentencePieceTokenizer


def make_tokenizer(
  tokenizer: str, lowercase: bool = True, pad_id: int = 1
) -> Tokenizer:
  """Returns the tokenizer that config.data asks for.

  Args:
    tokenizer: "bytes", or the path of a SentencePiece model.
    lowercase: whether A-Z become a-z first.
    pad_id: what fills the end: 1 for SigLIP, 0 for SigLIP 2.

  Raises:
    UserError: the file is missing or no SentencePiece model.
  """
  if tokenizer == "bytes":
    return ByteTokenizer(lowercase, pad_id)
  return SentencePieceTokenizer(tokenizer, lowercase=lowercase, pad_id=pad_id)


def canonicalize(text: str, *, keep_punctuation: str = "") -> str:
  """Returns `text` as zero-shot evaluation writes class names and prompts.

  Underscores become spaces, ASCII punctuation goes, letters are lowercased and
  white space collapses: big_vision's evaluators/proj/image_text/
  prompt_engineering.py. Training captions are not canonicalised.

  Args:
    text: a class name, a template or a caption.
    keep_punctuation: an exact string to keep, such as "{}" in a template.
  """
  text = text.replace("_", " ")
  parts = text.split(keep_punctuation) if keep_punctuation else [text]
  parts = [part.translate(_REMOVE_PUNCTUATION) for part in parts]
  return re.sub(r"\s+", " ", keep_punctuation.join(parts).lower()).strip()


def _lowercase(text: str) -> str:
  # ASCII letters only: what tf.strings.lower does, with which SigLIP trained.
  return text.encode("utf-8").lower().decode("utf-8")


def _pad(
  ids: list[list[int]], length: int, eos_id: int, pad_id: int
) -> np.ndarray:
  padded = np.full((len(ids), length), pad_id, np.int32)
  for row, tokens in zip(padded, ids, strict=True):
    tokens = [*tokens[: length - 1], eos_id]
    row[: len(tokens)] = tokens
  return padded


def _until_end(ids: Sequence[int], eos_id: int, pad_id: int) -> list[int]:
  ids = [int(i) for i in ids]
  ends = [i for i, token in enumerate(ids) if token in (eos_id, pad_id)]
  return ids[: ends[0]] if ends else ids


def _check_pad_id(pad_id: int, vocab_size: int) -> None:
  if not 0 <= pad_id < vocab_size:
    raise UserError(
      f"config.data.pad_id={pad_id}: must lie in [0, {vocab_size}), the ids"
      " of config.data.tokenizer"
    )
