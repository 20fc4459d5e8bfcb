"""The preprocessing of an export, in a JSON file beside the weights.

Other projects' formats have no place for all of it: big_vision's and
open_clip's hold arrays alone, and transformers' processors neither resize as
big_vision nor resolve entities. Nor do arrays alone say how many heads share a
width. `m.npz` has `m.preprocessing.json`, a folder
`preprocessing.json`; others ignore it, and our import goes by it.
"""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import shutil
from typing import Any

from big_siglip import shipped
from big_siglip.data.preprocessing import Preprocessing
from big_siglip.data.text import is_json
from big_siglip.errors import UserError
from big_siglip.schema import sizes
from big_siglip.schema.fields import FIELDS
from big_siglip.schema.words import CLEANINGS, RESIZES
from big_siglip.weights.tensors import read_json

_NAME = "preprocessing.json"


def describe(config: Any, tokenizer: str) -> dict[str, Any]:
  """Returns what has to be done before a tower: see `Preprocessing`.

  Args:
    config: `model` and `data`.
    tokenizer: the name of its file beside the export, or "bytes".
  """
  made = Preprocessing.of(config)
  return dataclasses.replace(made, tokenizer=tokenizer).as_dict()


def save(place: pathlib.Path, config: Any, tokenizer: str) -> None:
  """Writes it beside an exported file, or into an exported folder."""
  model = config.model
  heads = {
    "image": sizes.resolve_image(model.image).num_heads,
    "text": sizes.resolve_text(model.text).num_heads,
  }
  made = {**describe(config, tokenizer), "num_heads": heads}
  _file(place).write_text(json.dumps(made, indent=2) + "\n")


def copy_tokenizer(file: pathlib.Path, tokenizer: str) -> str:
  """Copies a tokenizer beside an exported file; returns its new name."""
  if tokenizer == "bytes":
    return tokenizer
  ending = ".tokenizer.json" if is_json(tokenizer) else ".tokenizer.model"
  copy = file.with_suffix(ending)
  shutil.copyfile(shipped.find(tokenizer), copy)
  return copy.name


def read(place: pathlib.Path) -> dict[str, Any]:
  """Returns what `save` wrote, with the tokenizer's path; {} if nothing.

  Raises:
    UserError: it is damaged.
  """
  file = _file(place)
  if not file.is_file():
    return {}
  found = read_json(file)
  for field, (is_right, allowed) in _RULES.items():
    if not is_right(found.get(field)):
      raise UserError(
        f"{file}: {field}={found.get(field)!r}: must be {allowed}"
      )
  for field, rule in _LATER.items():
    if broken := rule.mistake(found.get(field)):
      raise UserError(f"{file}: {field}={found[field]!r}: {broken}")
  if found["tokenizer"] != "bytes":
    found["tokenizer"] = str(file.parent / found["tokenizer"])
  return found


def _one_of(*words: str) -> tuple[Callable[[Any], bool], str]:
  return lambda value: value in words, f"one of {', '.join(words)}"


def _is_number(value: Any) -> bool:
  return type(value) is int and value >= 0


def _are_heads(value: Any) -> bool:
  return (
    isinstance(value, dict)
    and value.keys() == {"image", "text"}
    and all(_is_number(number) and number for number in value.values())
  )


def _is_name(value: Any) -> bool:
  return isinstance(value, str) and pathlib.Path(value).name == value


_RULES = {
  "image_size": (_is_number, "a whole number"),
  "resize": _one_of(*RESIZES),
  "tokenizer": (_is_name, "bytes or a file beside it"),
  "lowercase": (lambda value: isinstance(value, bool), "true or false"),
  "clean": _one_of(*CLEANINGS),
  "pad_id": (_is_number, "a whole number"),
  "num_heads": (_are_heads, "whole numbers for image and text"),
}
# What older files do not say.
_OF_CONFIG = {**FIELDS["model"]["image"], **FIELDS["data"]}
_LATER = {
  name: _OF_CONFIG[name]
  for name in ("crop", "crop_fraction", "fill", "mean", "std")
}


def _file(place: pathlib.Path) -> pathlib.Path:
  return place / _NAME if place.is_dir() else place.with_suffix(f".{_NAME}")
