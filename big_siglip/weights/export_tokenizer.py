"""Writes a tokenizer as AutoTokenizer and AutoProcessor read it.

All become a tokenizer.json, which does all that training did: lowercasing, the
end of a text, padding and length. None is written before it has given the ids
of training.
"""

from collections.abc import Iterator
import dataclasses
import json
import pathlib
import random
import shutil
from typing import Any

from absl import logging
import tokenizers

from big_siglip import shipped
from big_siglip.data.cleaning import prepare
from big_siglip.data.text import (
  HuggingFaceTokenizer,
  make_tokenizer,
  Tokenizer,
)
from big_siglip.errors import UserError
from big_siglip.weights import tokenizer_json

# What has to get the ids of training before a tokenizer is written.
_TEXTS = (
  "",
  " ",
  "A photo of a cat.",
  "a photo of  two   dogs, running ",
  " Leading and trailing spaces\t\n ",
  'He said: "It\'s 3.50 EUR (50 % off)!" #sale @home https://a.org/b_c?d=e&f',
  "UPPER lower MiXeD iPhone NASA A1B2",
  "École, naïve café, Straße, Ångström, ÉCOLE DÉJÀ VU",
  "Две собаки на ПЛЯЖЕ; σκύλος ΣΤΟΝ ΉΛΙΟΣ",
  "海滩上的两只狗。犬が走る、ビーチで",
  "كلب على الشاطئ · כלב על החוף · कुत्ता",
  "🐶🏖️ 👩‍👩‍👧 ½ ① ﬁsh Ｄｏｇ … “quotes” – dash — №",
  "</s> <s> <pad> <unk> <eos> <bos> <0x41> [SEP] [PAD] <|endoftext|>",
  "a▁b ▁▁ c\r\nd",
  "Tie\u0302\u0301ng Vie\u0323\u0302t \u1112\u1162\u1107\u1167\u11ab",
  "zzzzzz aaaaaaaaa ....... !!!! 1111111 2024-05-06",
  "dog " * 300,
  "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
)
_MOST_PIECES = 2_000  # Of its own that are tried as well.


@dataclasses.dataclass(frozen=True)
class Exported:
  """A tokenizer that may be written.

  Attributes:
    name: of the file that is ours again when it is imported, or "bytes".
    text: of tokenizer.json.
    config: of tokenizer_config.json.
    source: the SentencePiece model that goes with it; None: there is none.
  """

  name: str
  text: str
  config: dict[str, Any]
  source: pathlib.Path | None

  def save(self, folder: pathlib.Path) -> str:
    """Writes the files; returns `name`."""
    (folder / "tokenizer.json").write_text(self.text, encoding="utf-8")
    config = json.dumps(self.config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    if self.source is not None:
      shutil.copyfile(self.source, folder / self.name)
    return self.name


def make(data: Any, length: int) -> Exported:
  """Returns a tokenizer for `AutoTokenizer`, with the ids of training.

  Args:
    data: `config.data`: tokenizer, lowercase, pad_id, clean.
    length: tokens of a text.

  Raises:
    UserError: `tokenizers` cannot do what it does; nothing was written.
  """
  ours = make_tokenizer(data.tokenizer, data.lowercase, data.pad_id, data.clean)
  name, source = "bytes", None
  if isinstance(ours, HuggingFaceTokenizer):
    name = "tokenizer.json"
  elif data.tokenizer != "bytes":
    source = shipped.find(data.tokenizer)
    # As SigLIP's and as SigLIP 2's is called.
    name = "spiece.model" if data.pad_id == ours.eos_id else "tokenizer.model"
  names = {number: token for token, number in ours.vocabulary().items()}
  if data.pad_id not in names:
    raise UserError(
      f"config.data.pad_id={data.pad_id}: transformers wants a token for it, "
      "and config.data.tokenizer has none of that number"
    )
  end, pad = names[ours.eos_id], names[data.pad_id]
  try:
    made = _with_rules(_library(data, ours), ours, end, pad, length)
    wrong = _check(made, ours, end, pad, length)
  except UserError:
    raise
  except Exception as error:  # The library raises no other type.
    wrong, made = str(error), None
  if made is None or wrong:
    raise UserError(
      f"config.data.tokenizer={data.tokenizer!r}: no tokenizer.json for "
      f"transformers does what training did: {wrong}"
    )
  if data.clean != "none":
    logging.warning(
      "config.data.clean=%r: the exported tokenizer does it but for HTML "
      "entities (&amp;); resolve these before (html.unescape, twice)",
      data.clean,
    )
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "processor_class": "SiglipProcessor",
    "model_max_length": length,
    "padding_side": "right",
    "model_input_names": ["input_ids"],
    "eos_token": end,
    "pad_token": pad,
    # Whoever spells "</s>" means these letters, as in training.
    "split_special_tokens": True,
    "do_lower_case": data.lowercase,
  }
  return Exported(name, made.to_str(), config, source)


def _library(data: Any, ours: Tokenizer) -> tokenizers.Tokenizer:
  """Returns what cuts texts alone."""
  if isinstance(ours, HuggingFaceTokenizer):
    return tokenizers.Tokenizer.from_str(ours.to_json())
  if data.tokenizer == "bytes":
    return tokenizer_json.of_bytes()
  file = shipped.find(data.tokenizer)
  return tokenizer_json.of_sentencepiece(file)


def _with_rules(
  made: tokenizers.Tokenizer, ours: Tokenizer, end: str, pad: str, length: int
) -> tokenizers.Tokenizer:
  """Returns a copy with SigLIP's rules, which a file need not have had."""
  first = tokenizer_json.preparing(ours.clean, ours.lowercase)
  normalizer = made.normalizer
  if first:
    old = [normalizer] if normalizer else []
    made.normalizer = tokenizers.normalizers.Sequence([*first, *old])
  made.enable_truncation(length)
  made.enable_padding(length=length, pad_id=ours.pad_id, pad_token=pad)
  rules = json.loads(made.to_str())
  text = {"Sequence": {"id": "A", "type_id": 0}}
  ending = {"SpecialToken": {"id": end, "type_id": 0}}
  rules["post_processor"] = {
    "type": "TemplateProcessing",
    "single": [text, ending],
    "pair": [text, ending],
    "special_tokens": {end: {"id": end, "ids": [ours.eos_id], "tokens": [end]}},
  }
  rules["added_tokens"] = [
    _added(token, ours, normalizer) for token in rules["added_tokens"]
  ]
  return tokenizers.Tokenizer.from_str(json.dumps(rules))


def _added(
  token: dict[str, Any], ours: Tokenizer, normalizer: Any
) -> dict[str, Any]:
  """Returns an added token as it has to be where texts are prepared later.

  One that no prepared text holds becomes special: such are read as letters.
  """
  text = token["content"]
  prepared = prepare(text, ours.clean, ours.lowercase)
  if token["special"]:
    return token
  if text == prepared:
    # With capitals it is found too, once these are lowercased.
    later = ours.lowercase and text != text.upper()
    return {**token, "normalized": token["normalized"] or later}
  if token["normalized"] and normalizer:
    as_it_was, now = map(normalizer.normalize_str, (text, prepared))
    if as_it_was == now:
      return token
  return {**token, "special": True, "normalized": False}


def _check(
  made: tokenizers.Tokenizer, ours: Tokenizer, end: str, pad: str, length: int
) -> str | None:
  """Returns what differs from the ids of training, or None."""
  # As transformers does; it finds no special token in a text then.
  made = tokenizers.Tokenizer.from_str(made.to_str())
  made.add_special_tokens([end, pad])
  made.encode_special_tokens = True
  added = [token.content for token in made.get_added_tokens_decoder().values()]
  added = [f"a {text} b {text.upper()}." for text in added]
  for text in (*_TEXTS, *added, *_own_texts(ours)):
    got, wanted = made.encode(text).ids, ours([text], length)[0].tolist()
    if got != wanted:
      text = text if len(text) < 60 else f"{text[:60]}..."
      return f"{text!r} would get the ids {got[:8]} for {wanted[:8]}"
  return None


def _own_texts(ours: Tokenizer) -> Iterator[str]:
  """Yields texts of a tokenizer's own pieces, from all over its vocabulary."""
  pieces = sorted(ours.vocabulary())
  pieces = random.Random(0).sample(pieces, min(_MOST_PIECES, len(pieces)))
  for start in range(0, len(pieces), 5):
    text = " ".join(pieces[start : start + 5]).replace("\u2581", " ")
    yield text
    yield text.upper()
