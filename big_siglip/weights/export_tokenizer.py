"""Writes a tokenizer as AutoTokenizer and AutoProcessor read it."""

import json
import pathlib
import shutil
import string
from typing import Any

from absl import logging

from big_siglip.data.text import is_json, make_tokenizer


def save(folder: pathlib.Path, data: Any, length: int) -> str:
  """Writes the tokenizer's file, which it names, and tokenizer_config.json.

  Args:
    folder: there already.
    data: `config.data`: tokenizer, lowercase, pad_id.
    length: tokens of a text.
  """
  if data.tokenizer == "bytes":
    _write_json(folder / "tokenizer_config.json", _byte_tokenizer(length))
    if data.lowercase:
      logging.warning(
        "%s: its tokenizer, ByT5's, does not do config.data.lowercase; do that "
        "before",
        folder,
      )
    return "bytes"
  tokenizer = make_tokenizer(data.tokenizer, pad_id=data.pad_id)
  common = {
    "processor_class": "SiglipProcessor",
    "model_max_length": length,
    "padding_side": "right",
    "model_input_names": ["input_ids"],
  }
  if is_json(data.tokenizer):
    file = pathlib.Path(data.tokenizer).expanduser()
    made = json.loads(file.read_text(encoding="utf-8"))
    names = {number: token for token, number in tokenizer.vocabulary().items()}
    end = names[tokenizer.eos_id]
    _set_rules(made, end, tokenizer.eos_id, data.lowercase)
    text, name = json.dumps(made, ensure_ascii=False), "tokenizer.json"
    (folder / name).write_text(text, encoding="utf-8")
    own = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "eos_token": end,
      "pad_token": names[data.pad_id],
    }
  # SigLIP pads with the end of a sentence, SigLIP 2 with a piece of its own.
  elif data.pad_id == tokenizer.eos_id:
    name = "spiece.model"
    shutil.copyfile(data.tokenizer, folder / name)
    own = {
      "tokenizer_class": "SiglipTokenizer",
      "do_lower_case": data.lowercase,
      "unk_token": "<unk>",
      "eos_token": "</s>",
      "pad_token": "</s>",
    }
  else:
    name = "tokenizer.model"
    shutil.copyfile(data.tokenizer, folder / name)
    own = {
      "tokenizer_class": "Siglip2Tokenizer",
      "do_lower_case": data.lowercase,
      "unk_token": "<unk>",
      "eos_token": "<eos>",
      "bos_token": "<bos>",
      "pad_token": "<pad>",
      "add_bos_token": False,
      "add_eos_token": True,
    }
  _write_json(folder / "tokenizer_config.json", {**common, **own})
  return name


def _set_rules(
  made: dict[str, Any], end: str, end_id: int, lowercase: bool
) -> None:
  """Puts SigLIP's rules into a tokenizer.json, which need not have had them.

  Lowercasing is of ASCII letters, as ours; the library's own is of all.
  """
  if lowercase:
    small = [
      {"type": "Replace", "pattern": {"String": letter}, "content": lower}
      for letter, lower in zip(
        string.ascii_uppercase, string.ascii_lowercase, strict=True
      )
    ]
    old = [made["normalizer"]] if made.get("normalizer") else []
    made["normalizer"] = {"type": "Sequence", "normalizers": [*small, *old]}
  text = {"Sequence": {"id": "A", "type_id": 0}}
  ending = {"SpecialToken": {"id": end, "type_id": 0}}
  made["post_processor"] = {
    "type": "TemplateProcessing",
    "single": [text, ending],
    "pair": [text, ending],
    "special_tokens": {end: {"id": end, "ids": [end_id], "tokens": [end]}},
  }
  made["truncation"] = made["padding"] = None


def _byte_tokenizer(length: int) -> dict[str, Any]:
  """Our bytes are ByT5's; it does not lowercase."""
  return {
    "tokenizer_class": "ByT5Tokenizer",
    "model_max_length": length,
    "extra_ids": 0,
    "pad_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "model_input_names": ["input_ids"],
  }


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n")
