"""Any tokenizer of ours as one of Hugging Face's `tokenizers`, with its ids.

A SentencePiece model keeps its rules in a protocol buffer; here they become
the normalizers, the model and the decoder of a tokenizer.json.
"""

import functools
import itertools
import pathlib
import re
import string
from typing import Any

from google.protobuf import (
  descriptor_pb2,
  descriptor_pool,
  message,
  message_factory,
)
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from big_siglip.data.text import ByteTokenizer
from big_siglip.errors import UserError

_SPACE = "\u2581"  # What stands for a space in a SentencePiece model.
# What Python's str.split takes for white space.
_WHITE = (
  "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
)
# What matters here of sentencepiece_model.proto: number, type and default of
# each field. The module that comes with sentencepiece wants a newer protobuf
# than others allow.
_FIELDS = {
  "Piece": {
    "piece": (1, "STRING", ""),
    "score": (2, "FLOAT", ""),
    "type": (3, "INT32", "1"),
  },
  "Trainer": {
    "model_type": (3, "INT32", "1"),
    "byte_fallback": (35, "BOOL", "false"),
    "unk_id": (40, "INT32", "0"),
  },
  "Normalizer": {
    "name": (1, "STRING", ""),
    "precompiled_charsmap": (2, "BYTES", ""),
    "add_dummy_prefix": (3, "BOOL", "true"),
    "remove_extra_whitespaces": (4, "BOOL", "true"),
  },
  "Model": {
    "pieces": (1, "Piece", "repeated"),
    "trainer_spec": (2, "Trainer", ""),
    "normalizer_spec": (3, "Normalizer", ""),
  },
}
_UNIGRAM, _BPE, _WORD, _CHAR = 1, 2, 3, 4  # TrainerSpec.ModelType.
_NAMES = {_WORD: "word"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type.


@functools.cache
def _model_class() -> type[message.Message]:
  """Returns the class of a SentencePiece model's message."""
  file = descriptor_pb2.FileDescriptorProto(name="model.proto", syntax="proto2")
  for name, fields in _FIELDS.items():
    made = file.message_type.add(name=name)
    for field, (number, kind, default) in fields.items():
      one = made.field.add(name=field, number=number)
      one.label = (
        one.LABEL_REPEATED if default == "repeated" else (one.LABEL_OPTIONAL)
      )
      if kind in _FIELDS:
        one.type, one.type_name = one.TYPE_MESSAGE, kind
        continue
      one.type = getattr(one, f"TYPE_{kind}")
      if default:
        one.default_value = default
  pool = descriptor_pool.DescriptorPool()
  pool.AddSerializedFile(file.SerializeToString())
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("Model"))


def of_bytes() -> tokenizers.Tokenizer:
  """Returns `ByteTokenizer`'s: no character is known, all become bytes."""
  vocabulary = ByteTokenizer().vocabulary()
  made = tokenizers.Tokenizer(
    models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
  )
  made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
  return made


def of_sentencepiece(file: pathlib.Path) -> tokenizers.Tokenizer:
  """Returns a SentencePiece model's.

  Raises:
    UserError: `tokenizers` has no such model.
  """
  proto: Any = _model_class()()
  proto.ParseFromString(file.read_bytes())
  kind = proto.trainer_spec.model_type
  if kind in _NAMES:
    raise UserError(
      f"config.data.tokenizer={str(file)!r}: model_type={_NAMES[kind]}: no "
      "tokenizer.json does the same; must be unigram, bpe or char"
    )
  make = _unigram if kind == _UNIGRAM else _bpe
  made = make(proto)
  rules = proto.normalizer_spec
  made.normalizer = normalizers.Sequence(_spaces(rules))
  cut = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
  made.decoder = decoders.Sequence(
    [
      decoders.Replace(_SPACE, " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      *cut,
    ]
  )
  return made


def _spaces(rules: Any) -> list[normalizers.Normalizer]:
  """Returns what a NormalizerSpec says: characters, then white space."""
  done: list[normalizers.Normalizer] = []
  if rules.precompiled_charsmap:
    # The library looks up a letter with all of its marks at once, and what is
    # not there letter by letter: decomposed Korean would stay as it is.
    if "nfkc" in rules.name:
      done.append(normalizers.NFC())
    done.append(normalizers.Precompiled(rules.precompiled_charsmap))
  if rules.remove_extra_whitespaces:
    done.append(_replace(r"\A +", ""))
    done.append(_replace(" {2,}", " "))
  done.append(normalizers.Replace(" ", _SPACE))
  if rules.add_dummy_prefix:
    done.append(normalizers.Prepend(_SPACE))
  if rules.remove_extra_whitespaces:
    done.append(_replace(f"{_SPACE}+\\z", ""))
  return done


def _unigram(proto: Any) -> tokenizers.Tokenizer:
  pieces = [(p.piece, p.score) for p in proto.pieces]
  unknown = proto.trainer_spec.unk_id
  made = tokenizers.Tokenizer(
    models.Unigram(pieces, unknown, proto.trainer_spec.byte_fallback)
  )
  pattern = tokenizers.Regex("|".join(_cuts(proto)))
  steps = [pre_tokenizers.Split(pattern, "merged_with_previous")]
  if chosen := _of_type(proto, _USER_DEFINED):
    chosen = sorted(map(_escape, chosen), key=len, reverse=True)
    pattern = tokenizers.Regex("|".join(chosen))
    steps.insert(0, pre_tokenizers.Split(pattern, "isolated"))
  made.pre_tokenizer = pre_tokenizers.Sequence(steps)
  return made


def _cuts(proto: Any) -> list[str]:
  """Returns patterns of the beginnings of names that are no text.

  The library finds every piece in a text, also "</s>" and "<0x41>", which to
  SentencePiece are these letters. Cut in two there is nothing to be found. A
  cut beside a known letter, since unknown ones in a row are one.
  """
  known = set(_of_type(proto, _NORMAL))
  patterns = ["<(?=0x[0-9A-F]{2}>)"] if proto.trainer_spec.byte_fallback else []
  for name in _of_type(proto, _UNKNOWN) + _of_type(proto, _CONTROL):
    places = range(1, len(name))
    cut = next((i for i in places if known & {name[i - 1], name[i]}), 1)
    if len(name) > 1:
      patterns.append(f"{_escape(name[:cut])}(?={_escape(name[cut:])})")
  return patterns


def _bpe(proto: Any) -> tokenizers.Tokenizer:
  """Returns a BPE model; one of single characters has nothing to merge."""
  trainer = proto.trainer_spec
  vocabulary = {p.piece: number for number, p in enumerate(proto.pieces)}
  made = tokenizers.Tokenizer(
    models.BPE(
      vocabulary,
      _merges(proto) if trainer.model_type == _BPE else [],
      unk_token=proto.pieces[trainer.unk_id].piece,
      byte_fallback=trainer.byte_fallback,
      fuse_unk=True,
    )
  )
  made.add_tokens(
    [
      tokenizers.AddedToken(piece, normalized=True, special=False)
      for piece in _of_type(proto, _USER_DEFINED)
    ]
  )
  return made


def _merges(proto: Any) -> list[tuple[str, str]]:
  """Returns every way to a piece, in the order in which they are tried.

  SentencePiece merges the pair whose piece has the highest score, the leftmost
  of several. Of the pairs that make one piece the longest left goes first: in a
  run of one letter, merged from the left, it is the one that is there.
  """
  scores = {p.piece: p.score for p in proto.pieces if p.type == _NORMAL}
  found = [
    (score, cut, piece)
    for piece, score in scores.items()
    for cut in range(1, len(piece))
    if piece[:cut] in scores and piece[cut:] in scores
  ]
  found.sort(key=lambda way: (way[0], way[1]), reverse=True)
  return [(piece[:cut], piece[cut:]) for _, cut, piece in found]


def _of_type(proto: Any, kind: int) -> list[str]:
  return [p.piece for p in proto.pieces if p.type == kind]


def preparing(clean: str, lowercase: bool) -> list[normalizers.Normalizer]:
  """Returns what `cleaning.prepare` does, but for HTML entities.

  Args:
    clean: see `cleaning.prepare`.
    lowercase: of ASCII letters alone; the library's own is of all.
  """
  done: list[normalizers.Normalizer] = []
  if clean == "canonical":
    done.append(normalizers.Replace("_", " "))
    punctuation = re.escape(string.punctuation)
    done.append(_replace(f"[{punctuation}]", ""))
    # Python writes the sigma that ends a word in another way.
    done.append(_replace(r"(?<=\p{L})Σ(?!\p{L})", "ς"))
    done.append(normalizers.Lowercase())
  if clean != "none":
    done.append(_replace(f"{_WHITE}+", " "))
    done.append(_replace(r"\A | \z", ""))
  if lowercase:
    done += itertools.starmap(
      normalizers.Replace,
      zip(string.ascii_uppercase, string.ascii_lowercase, strict=True),
    )
  return done


def _replace(pattern: str, content: str) -> normalizers.Normalizer:
  return normalizers.Replace(tokenizers.Regex(pattern), content)


def _escape(text: str) -> str:
  """Escapes what Oniguruma, the library's regular expressions, knows too."""
  return re.sub(r"([^\w\s<>/_\u2581])", r"\\\1", text)
