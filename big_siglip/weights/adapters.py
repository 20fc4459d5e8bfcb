"""LoRA adapters of PEFT, added to the weights that they were trained on.

A folder of one holds adapter_config.json and adapter_model.safetensors: of each
adapted matrix W two small ones, and the share that W + share B A takes
(arXiv:2106.09685). What an adapter may be beside that is refused by name.

Shape letters: O outputs, I inputs, R rank.
"""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
import re
from typing import Any

import numpy as np

from big_siglip.errors import UserError
from big_siglip.weights import tensors
from big_siglip.weights.rules import Reader, Shape

FILE = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_PAIR = re.compile(
  r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight"
)
# What is told of an adapter, and changes no number once it is trained.
_HARMLESS = {
  "auto_mapping",
  "base_model_name_or_path",
  "ensure_weight_tying",
  "exclude_modules",
  "inference_mode",
  "layers_pattern",
  "layers_to_transform",
  "lora_dropout",
  "megatron_core",
  "modules_to_save",  # Its arrays are looked at: see `add`.
  "peft_version",
  "qalora_group_size",
  "revision",
  "runtime_config",
  "target_modules",
  "task_type",
}
# Fields with more than one good value; all others must be empty.
_ALLOWED = {
  "peft_type": ("LORA",),
  "bias": ("none",),
  # The others change W itself when training starts.
  "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
  "use_rslora": (True, False, None),
}


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Small matrices of a folder, and how they are added.

  Attributes:
    path: of the folder.
    base: what it was trained on, as its config has it; None: it does not say.
    share: of the product in the sum.
    pairs: {name of a module: (name of A, name of B)} in the file.
    others: names of what else is in it: whole modules, such as a classifier.
    reader: of the file.
  """

  path: pathlib.Path
  base: str | None
  share: float
  pairs: Mapping[str, tuple[str, str]]
  others: tuple[str, ...]
  reader: Reader


class Adapted:
  """A reader of weights whose matrices have an adapter added."""

  def __init__(self, weights: Reader, adapter: Adapter, names: Mapping):
    """Adds {name of an array: its pair}."""
    self.path = weights.path
    self._weights, self._adapter, self._names = weights, adapter, names

  def shapes(self) -> Mapping[str, Shape]:
    """Returns {key: shape}."""
    return self._weights.shapes()

  def read(self, key: str) -> np.ndarray:
    """Returns one array: W + share B A in float32 where it is adapted."""
    array = self._weights.read(key)
    if key not in self._names:
      return array
    array = np.array(array, np.float32)
    a, b = (
      np.array(self._adapter.reader.read(name), np.float32)
      for name in self._names[key]
    )
    return array + np.float32(self._adapter.share) * (b @ a)


def read(folder: pathlib.Path) -> Adapter:
  """Returns the adapter in a folder.

  Raises:
    UserError: it is another kind than plain LoRA of whole matrices.
  """
  file = folder / _CONFIG
  if not file.is_file():
    raise UserError(f"{folder}: is an adapter without its {_CONFIG}")
  config = tensors.read_json(file)
  _check(config, file)
  rank, alpha = config["r"], config["lora_alpha"]
  share = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
  reader = tensors.Safetensors(folder / FILE)
  found: dict[str, dict[str, str]] = {}
  others = []
  for name, shape in reader.shapes().items():
    pair = _PAIR.fullmatch(name)
    if not pair and ".lora_" not in name:
      others.append(name)
      continue
    if not pair or len(shape) != 2 or shape["BA".index(pair[2]) - 1] != rank:
      raise UserError(
        f"{folder / FILE}: {name} has shape {list(shape)}: must be lora_A of "
        f"[{rank}, inputs] or lora_B of [outputs, {rank}], by r of {_CONFIG}"
      )
    found.setdefault(pair[1], {})[pair[2]] = name
  for module, pair in found.items():
    if len(pair) != 2:
      raise UserError(f"{folder / FILE}: {module} has no lora_A or no lora_B")
  pairs = {module: (pair["A"], pair["B"]) for module, pair in found.items()}
  base = config.get("base_model_name_or_path")
  return Adapter(folder, base or None, share, pairs, tuple(others), reader)


def _check(config: Mapping[str, Any], file: pathlib.Path) -> None:
  for field in ("r", "lora_alpha"):
    value = config.get(field)
    if (
      not isinstance(value, int | float)
      or isinstance(value, bool)
      or not 0 < value < math.inf
    ):
      raise UserError(f"{file}: {field}={value!r}: must be a number above 0")
  given = {"peft_type": None, **config}
  for field, value in given.items():
    if field in _HARMLESS or field in ("r", "lora_alpha"):
      continue
    if field not in _ALLOWED and not value:
      continue
    allowed = _ALLOWED.get(field, ("empty",))
    if value not in allowed:
      words = " or ".join(map(str, allowed))
      raise UserError(
        f"{file}: {field}={value!r}: must be {words}, as in plain LoRA; merge "
        "it where it was trained (merge_and_unload)"
      )


def add(weights: Reader, towers: tuple[str, ...], adapter: Adapter) -> Adapted:
  """Returns the weights with an adapter.

  Args:
    weights: with the names of transformers.
    towers: which they have; of an image tower alone what else is adapted, such
      as a language model, is left out.
    adapter: of these weights.

  Raises:
    UserError: it is of other weights.
  """
  shapes, names = weights.shapes(), {}
  for other in adapter.others:  # A classifier may stand beside a tower.
    if towers != ("image",) or "vision" in other or "encoder." in other:
      raise UserError(
        f"{adapter.path}: {other} is a whole array (modules_to_save), where an "
        "adapter must be plain LoRA; merge it where it was trained "
        "(merge_and_unload)"
      )
  for module, pair in adapter.pairs.items():
    key = f"{_module(module, towers)}.weight"
    if key not in shapes:
      if towers == ("image",) and not key.startswith("vision_model."):
        continue
      raise UserError(
        f"{adapter.path}: adapts {module}, which {weights.path} has not"
      )
    wanted = (shapes[key][0], *adapter.reader.shapes()[pair[0]][1:])
    rows = adapter.reader.shapes()[pair[1]][0]
    if shapes[key] != wanted or rows != wanted[0]:
      raise UserError(
        f"{adapter.path}: adapts {module} of shape [{rows}, {wanted[1]}], and "
        f"{weights.path} has {list(shapes[key])}"
      )
    names[key] = pair
  if not names:
    raise UserError(f"{adapter.path}: adapts nothing that {weights.path} has")
  return Adapted(weights, adapter, names)


def _module(module: str, towers: tuple[str, ...]) -> str:
  """Returns a module's name as a file of transformers has it."""
  found = re.search(r"(?:^|\.)vision_tower\.(?:vision_model\.)?(.+)", module)
  if found:
    return f"vision_model.{found[1]}"
  found = re.search(r"(?:^|\.)((?:vision_model|text_model)\..+)", module)
  if found:
    return found[1]
  flat = module.startswith(("encoder.", "head.", "embeddings."))
  return f"vision_model.{module}" if flat and towers == ("image",) else module
