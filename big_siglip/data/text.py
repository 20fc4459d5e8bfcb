"""Turns captions into token ids of one fixed length, by SigLIP's rules.

A tokenizer's file cuts the text alone. What stands around it are the rules of
the `tokenize` op of google-research/big_vision (pp/ops_text.py), which trained
the published weights: lowercase, append EOS, no BOS; a text of `length` tokens
or more keeps its first `length` - 1 and EOS ("sticky"), a shorter one is padded
on the right.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

import numpy as np
import sentencepiece
import tokenizers

from big_siglip import shipped
from big_siglip.data.cleaning import prepare
from big_siglip.errors import UserError

# What a tokenizers file may call the end of a text, the first that it has.
_EOS_TOKENS = ("<eos>", "</s>", "<|endoftext|>", "<|im_end|>", "[SEP]")


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
  """UTF-8 bytes as tokens: needs no file and knows every language.

  The ids are those of ByT5 (arXiv:2105.13626, section 3): 0 pad, 1 EOS,
  2 unknown (never produced), then the 256 bytes.
  """

  lowercase: bool = True
  pad_id: int = 1  # EOS, as SigLIP pads; 0 as SigLIP 2 does.
  clean: str = "none"  # See `cleaning.prepare`.

  eos_id = 1
  vocab_size = 3 + 256

  def __post_init__(self):
    _check_pad_id(self.pad_id, self.vocab_size)

  def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
    """Returns int32 [len(texts), length]."""
    texts = [prepare(t, self.clean, self.lowercase) for t in texts]
    ids = [[byte + 3 for byte in t.encode("utf-8")] for t in texts]
    return _pad(ids, length, self.eos_id, self.pad_id)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids [length] up to the first EOS or padding."""
    ids = _until_end(ids, self.eos_id, self.pad_id)
    return bytes(i - 3 for i in ids if i >= 3).decode("utf-8", "replace")

  def vocabulary(self) -> dict[str, int]:
    """Returns the ids of all tokens, by SentencePiece's names."""
    names = ["<pad>", "</s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    return {name: number for number, name in enumerate(names)}


class SentencePieceTokenizer:
  """A SentencePiece model file, such as SigLIP's c4_en or SigLIP 2's Gemma.

  Attributes:
    vocab_size: the number of pieces.
    eos_id: the id of the end-of-sentence piece.
    pad_id: what fills the end: 1 for SigLIP, 0 for SigLIP 2.
    lowercase: whether A-Z become a-z first.
    clean: see `cleaning.prepare`.
  """

  def __init__(
    self,
    path: str,
    *,
    lowercase: bool = True,
    pad_id: int = 1,
    clean: str = "none",
  ):
    """Reads the model.

    Raises:
      UserError: `path` is missing, not SentencePiece or has no EOS piece, or
        `pad_id` is not an id of it.
    """
    self._model = _find(path).read_bytes()
    self.lowercase, self.pad_id, self.clean = lowercase, pad_id, clean
    field = f"config.data.tokenizer={str(path)!r}"
    try:
      self._load()
    except RuntimeError as e:
      raise UserError(
        f"{field}: is not a SentencePiece model or a tokenizer.json"
      ) from e
    if self.eos_id < 0:
      raise UserError(f"{field}: must have an end-of-sentence piece")
    _check_pad_id(pad_id, self.vocab_size)

  def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
    """Returns int32 [len(texts), length]."""
    texts = [prepare(t, self.clean, self.lowercase) for t in texts]
    # A list would be given a pool of threads, of one too: ten times the work.
    ids = [self._processor.encode(text) for text in texts]
    return _pad(ids, length, self.eos_id, self.pad_id)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids [length] up to the first EOS or padding."""
    return self._processor.decode(_until_end(ids, self.eos_id, self.pad_id))

  def vocabulary(self) -> dict[str, int]:
    """Returns the ids of all pieces."""
    pieces = self._processor.id_to_piece(list(range(self.vocab_size)))
    return {piece: number for number, piece in enumerate(pieces)}

  def __getstate__(self) -> dict[str, object]:
    return {k: v for k, v in vars(self).items() if k != "_processor"}

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


class HuggingFaceTokenizer:
  """A tokenizer.json of Hugging Face `tokenizers`, such as SigLIP 2's.

  Its own template, padding and truncation are left out, and a caption that
  spells out a special token of its vocabulary ("<eos>") gets the tokens of
  these letters; tokens added to the vocabulary are tokens. The end of a text is
  the first that it has of <eos>, </s>, <|endoftext|>, <|im_end|> and [SEP].

  Attributes:
    vocab_size: its largest id and one.
    eos_id: the id of the end of a text.
    pad_id: what fills the end: 1 for SigLIP, 0 for SigLIP 2.
    lowercase: whether A-Z become a-z first, whatever its own rules are.
    clean: see `cleaning.prepare`.
  """

  def __init__(
    self,
    path: str,
    *,
    lowercase: bool = True,
    pad_id: int = 1,
    clean: str = "none",
  ):
    """Reads the file.

    Raises:
      UserError: `path` is missing, no such file or knows no end of a text, or
        `pad_id` is not an id of it.
    """
    self._json = _find(path).read_text(encoding="utf-8", errors="replace")
    self.lowercase, self.pad_id, self.clean = lowercase, pad_id, clean
    field = f"config.data.tokenizer={str(path)!r}"
    try:
      self._load()
    except Exception as e:  # The library raises no other type.
      raise UserError(f"{field}: is no tokenizer.json ({e})") from e
    vocabulary = self.vocabulary()
    self.vocab_size = max(vocabulary.values(), default=0) + 1
    ends = [token for token in _EOS_TOKENS if token in vocabulary]
    if not ends:
      names = ", ".join(_EOS_TOKENS)
      raise UserError(f"{field}: must have a token for the end: one of {names}")
    self.eos_id = vocabulary[ends[0]]
    _check_pad_id(pad_id, self.vocab_size)

  def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
    """Returns int32 [len(texts), length]."""
    # One by one: threads of ours call this already, or a text comes alone.
    ids = [
      self._tokenizer.encode(
        prepare(text, self.clean, self.lowercase), add_special_tokens=False
      ).ids
      for text in texts
    ]
    return _pad(ids, length, self.eos_id, self.pad_id)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids [length] up to the first EOS or padding."""
    ids = _until_end(ids, self.eos_id, self.pad_id)
    # Some files call their bytes special.
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def vocabulary(self) -> dict[str, int]:
    """Returns the ids of all tokens."""
    return self._tokenizer.get_vocab()

  def to_json(self) -> str:
    """Returns the tokenizer.json of what cuts the texts."""
    return self._tokenizer.to_str()

  def __getstate__(self) -> dict[str, object]:
    return {k: v for k, v in vars(self).items() if k != "_tokenizer"}

  def __setstate__(self, state: dict[str, object]) -> None:
    self.__dict__.update(state)
    self._load()

  def _load(self) -> None:
    made = tokenizers.Tokenizer.from_str(self._json)
    added = [
      token.content
      for token in made.get_added_tokens_decoder().values()
      if token.special and made.model.token_to_id(token.content) is None
    ]
    if added:
      content = json.loads(self._json)
      for token in content["added_tokens"]:
        token["special"] &= token["content"] not in added
      made = tokenizers.Tokenizer.from_str(json.dumps(content))
    self._tokenizer = made
    made.no_padding()
    self._tokenizer.no_truncation()
    self._tokenizer.encode_special_tokens = True


Tokenizer = ByteTokenizer | SentencePieceTokenizer | HuggingFaceTokenizer


def make_tokenizer(
  tokenizer: str, lowercase: bool = True, pad_id: int = 1, clean: str = "none"
) -> Tokenizer:
  """Returns the tokenizer that config.data asks for.

  Args:
    tokenizer: "bytes", or the path of a SentencePiece model or of a
      tokenizer.json, whatever the file is called.
    lowercase: whether A-Z become a-z first.
    pad_id: what fills the end: 1 for SigLIP, 0 for SigLIP 2.
    clean: see `cleaning.prepare`.

  Raises:
    UserError: the file is missing or neither of the two.
  """
  if tokenizer == "bytes":
    return ByteTokenizer(lowercase, pad_id, clean)
  kind = HuggingFaceTokenizer if is_json(tokenizer) else SentencePieceTokenizer
  return kind(tokenizer, lowercase=lowercase, pad_id=pad_id, clean=clean)


def is_json(path: str) -> bool:
  """Returns whether a tokenizer's file, which must exist, is a JSON."""
  with _find(path).open("rb") as file:
    return file.read(64).lstrip()[:1] == b"{"  # No SentencePiece model does.


def _find(path: str) -> pathlib.Path:
  file = shipped.find(path)
  if not file.is_file():
    raise UserError(
      f"config.data.tokenizer={str(path)!r}: no such file; must be bytes, a "
      "SentencePiece .model or a tokenizer.json"
    )
  return file


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
