"""What lies beside weights about texts: a tokenizer's files of transformers.

`tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, and
what a `tokenizer.json` says of padding, truncation and its template. What the
model would see is done, or is refused by name.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from absl import logging

from big_siglip.data.text import is_json, make_tokenizer, Tokenizer
from big_siglip.errors import UserError
from big_siglip.weights import said
from big_siglip.weights.tensors import read_json

NAMES = (
  "spiece.model",
  "tokenizer.model",
  "sentencepiece.model",
  "tokenizer.json",
)
# Keys of tokenizer_config.json that change no token of one text, padded to the
# text tower's length.
_HARMLESS = """
tokenizer_class processor_class backend auto_map name_or_path tokenizer_file
special_tokens_map_file vocab_file is_local local_files_only chat_template
use_default_system_prompt clean_up_tokenization_spaces from_slow legacy
spaces_between_special_tokens split_special_tokens max_length stride padding
truncation truncation_strategy pad_to_multiple_of pad_token_type_id bos_token
unk_token mask_token cls_token sep_token image_token boi_token eoi_token
additional_special_tokens extra_special_tokens model_specific_special_tokens
errors extra_ids transformers_version trust_remote_code device_map
"""
HARMLESS = frozenset(_HARMLESS.split())
# Keys that are looked at.
_DONE = """
do_lower_case pad_token eos_token added_tokens_decoder padding_side
truncation_side model_max_length sp_model_kwargs add_bos_token add_eos_token
add_prefix_space model_input_names
"""
DONE = frozenset(_DONE.split())


def find(folder: pathlib.Path | None) -> str | None:
  """Returns the tokenizer's file in a folder, or None.

  A tokenizer.json goes before a SentencePiece model that lacks added tokens.
  """
  files = [folder / name for name in NAMES] if folder else []
  files = [file for file in files if file.is_file()]
  if folder is None or not files:
    return None
  first, last = str(files[0]), str(files[-1])
  both = first != last and is_json(last)
  added = (
    _added(folder, _said(folder / "tokenizer_config.json")) if both else {}
  )
  return last if added and _missing(added, make_tokenizer(first)) else first


def read(
  folder: pathlib.Path, tokenizer: str, made: Tokenizer, length: int
) -> dict[str, Any]:
  """Returns `lowercase` and `pad_id`, as far as files say them.

  Args:
    folder: with the tokenizer's other files.
    tokenizer: its own file.
    made: of this file, by any rules.
    length: tokens that the text tower sees.

  Raises:
    UserError: a file is damaged, or asks for what is not done here.
  """
  ids = made.vocabulary()
  file = folder / "tokenizer_config.json"
  config = _said(file)
  content: dict[str, Any] = {}
  if is_json(tokenizer):
    content = read_json(pathlib.Path(tokenizer))
    _check_json(content, tokenizer, ids, made.eos_id, length)
  _check_added(folder, config, tokenizer, made, ids)
  _check_config(config, str(file), length)
  if end := _content(config.get("eos_token")):
    rule = f"is not the end of a text in {tokenizer}"
    is_right = ids.get(end) == made.eos_id
    said.require(is_right, str(file), "eos_token", end, rule)
  found: dict[str, Any] = {}
  if (lowercase := config.get("do_lower_case")) is not None:
    is_right, rule = isinstance(lowercase, bool), "must be true or false"
    said.require(is_right, str(file), "do_lower_case", lowercase, rule)
    found["lowercase"] = lowercase
  if found.get("lowercase", True):
    _check_capitals(content, tokenizer)
  pad_id = _pad_id(folder, config, content, tokenizer, ids, made.eos_id)
  return found if pad_id is None else {**found, "pad_id": pad_id}


def _check_config(config: Mapping[str, Any], file: str, length: int) -> None:
  """Refuses what would give other tokens than SigLIP's rules."""
  masks = "must be ['input_ids'] alone: SigLIP masks no token"
  right = "must be right: SigLIP reads the last token, and fills the end"
  for key, allowed, rule in (
    ("padding_side", "right", right),
    ("truncation_side", "right", "must be right: the end is cut off"),
    ("add_bos_token", False, "must be false: SigLIP has no token before"),
    ("add_eos_token", True, "must be true: SigLIP appends the end"),
    (
      "add_prefix_space",
      False,
      "must be false: its own file says how a text begins",
    ),
    ("sp_model_kwargs", {}, "must be empty: nothing is sampled"),
    ("model_input_names", ["input_ids"], masks),
  ):
    value = config.get(key)
    said.require(value is None or value == allowed, file, key, value, rule)
  if config and config.get("model_input_names") is None:
    logging.warning(
      "%s: does not say model_input_names; the filled end is not masked, as "
      "SigLIP was trained",
      file,
    )
  most = config.get("model_max_length")
  if most is not None:
    rule = f"must be at least {length}, the tokens that the model sees"
    is_right = said.is_number(most) and most >= length
    said.require(is_right, file, "model_max_length", most, rule)
  for key in config.keys() - HARMLESS - DONE:
    if config[key] not in (None, False):
      value = str(config[key])[:80]
      logging.warning("%s: %s=%s is passed over", file, key, value)


def _check_json(
  content: Mapping[str, Any],
  tokenizer: str,
  ids: Mapping[str, int],
  eos_id: int,
  length: int,
) -> None:
  """The same for a tokenizer.json, of which our rules replace a part."""
  for key in ("padding", "truncation"):
    direction = (content.get(key) or {}).get("direction", "Right")
    rule = "must be Right, as SigLIP was trained"
    is_right = direction == "Right"
    said.require(is_right, tokenizer, f"{key}.direction", direction, rule)
  most = (content.get("truncation") or {}).get("max_length", length)
  rule = f"must be at least {length}, the tokens that the model sees"
  said.require(most >= length, tokenizer, "truncation.max_length", most, rule)
  end = next(name for name, number in ids.items() if number == eos_id)
  template = _template(content.get("post_processor"))
  if template is None:
    logging.warning(
      "%s: appends no end to a text; %r is appended, as SigLIP was trained",
      *(tokenizer, end),
    )
  elif template != [None, end]:
    shown = " ".join("TEXT" if part is None else part for part in template)
    said.refuse(tokenizer, "post_processor", shown, f"must be TEXT {end}")


def _template(processor: Any) -> list[str | None] | None:
  """Returns the tokens around a text, itself None; None: nothing is added."""
  kind = (processor or {}).get("type")
  if kind == "Sequence":
    found = [_template(each) for each in processor["processors"]]
    return next((each for each in found if each is not None), None)
  if kind in ("BertProcessing", "RobertaProcessing"):
    return [processor["cls"][0], None, processor["sep"][0]]
  if kind != "TemplateProcessing":
    return None
  parts = [
    part["SpecialToken"]["id"] if "SpecialToken" in part else None
    for part in processor["single"]
  ]
  return None if parts == [None] else parts


def _said(file: pathlib.Path) -> dict[str, Any]:
  """Returns what a file says, if it is there."""
  return read_json(file) if file.is_file() else {}


def _added(folder: pathlib.Path, config: Mapping[str, Any]) -> dict[str, int]:
  """Returns the tokens that were added to a vocabulary, as the files say.

  Args:
    folder: where they lie.
    config: what tokenizer_config.json says.
  """
  found: dict[str, int] = {}
  file = folder / "tokenizer_config.json"
  decoder = config.get("added_tokens_decoder") or {}
  rule = "must be tokens by their ids"
  is_right = isinstance(decoder, Mapping) and all(map(str.isdecimal, decoder))
  said.require(is_right, str(file), "added_tokens_decoder", decoder, rule)
  for number, token in decoder.items():
    found[_content(token) or ""] = int(number)
  file = folder / "added_tokens.json"
  for token, number in _said(file).items():
    is_right, rule = type(number) is int, "must be a whole number"
    said.require(is_right, str(file), token, number, rule)
    found[token] = number
  return found


def _missing(added: Mapping[str, int], made: Tokenizer) -> dict[str, int]:
  """Returns those that lie beyond a tokenizer's vocabulary."""
  return {t: i for t, i in added.items() if i >= made.vocab_size}


def _check_added(
  folder: pathlib.Path,
  config: Mapping[str, Any],
  tokenizer: str,
  made: Tokenizer,
  ids: Mapping[str, int],
) -> None:
  added = _added(folder, config)
  if missing := _missing(added, made):
    token, number = next(iter(missing.items()))
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise UserError(
      f"{folder}: {token!r} ({number}){more} was added to the tokenizer, and "
      f"{pathlib.Path(tokenizer).name} has {made.vocab_size:,} pieces without "
      "it: save a tokenizer.json, or name --tokenizer to leave it out"
    )
  other = [(t, number) for t, number in added.items() if ids.get(t) != number]
  if other:
    logging.warning(
      "%s: %d added tokens are other pieces of %s, %r (%d) the first: its "
      "pieces are taken",
      folder,
      len(other),
      tokenizer,
      *other[0],
    )


def _check_capitals(content: Mapping[str, Any], tokenizer: str) -> None:
  """Refuses added tokens of a tokenizer.json that no lowercased text has."""
  vocabulary = content["model"]["vocab"] if content else ()
  if isinstance(vocabulary, list):  # Of pieces with their scores.
    vocabulary = [piece for piece, _ in vocabulary]
  trained = set(vocabulary)
  for token in content.get("added_tokens", ()):
    text = token["content"]
    rule = "has capitals, and texts are lowercased first (do_lower_case)"
    is_right = text in trained or text == text.encode().lower().decode()
    said.require(is_right, tokenizer, "added_tokens", text, rule)


def _pad_id(
  folder: pathlib.Path,
  config: Mapping[str, Any],
  content: Mapping[str, Any],
  tokenizer: str,
  ids: Mapping[str, int],
  eos_id: int,
) -> int | None:
  """Returns what fills the end, None where no file says it."""
  file = folder / "tokenizer_config.json"
  token = _content(config.get("pad_token"))
  if token is None:
    file = folder / "special_tokens_map.json"
    token = _content(_said(file).get("pad_token"))
  if token is None:
    file = pathlib.Path(tokenizer)
    token = (content.get("padding") or {}).get("pad_token")
  if token is None:
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if kind == "SiglipTokenizer":
      return eos_id
    return ids.get("<pad>") if "Tokenizer" in kind else None
  number = ids.get(token)
  rule = f"is no token of {tokenizer}"
  said.require(number is not None, str(file), "pad_token", token, rule)
  return number


def _content(token: Any) -> str | None:
  """Returns a token's text; some files have its properties with it."""
  token = token.get("content") if isinstance(token, Mapping) else token
  return token if token is None else str(token)  # No list is a token's text.
