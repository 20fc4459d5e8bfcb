"""Writes a model as transformers, big_vision and open_clip read it.

The preprocessing goes with it, in a file of our own where theirs have no place.
"""

import itertools
import json
import pathlib
from typing import Any

from absl import logging

from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import UserError
from big_siglip.weights import (
  big_vision,
  export_tokenizer,
  huggingface,
  image_processor,
  open_clip,
  sidecar,
)
from big_siglip.weights.npz import save_npz
from big_siglip.weights.rules import write_params
from big_siglip.weights.tensors import save_safetensors


def to_huggingface(folder: pathlib.Path, params: Any, config: Any) -> None:
  """Writes a folder for `AutoModel` and `AutoProcessor`.

  Args:
    folder: to be made.
    params: the parameters.
    config: `model` and `data`.

  Raises:
    UserError: transformers has no such model.
  """
  model, data = config.model, config.data
  made = huggingface.to_config(model)
  tensors = itertools.chain(
    write_params(params, huggingface.rules(model)),
    huggingface.identity_head(model),
  )
  make_folder(folder)
  save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
  _write_json(folder / "config.json", made)
  pixels = image_processor.to_transformers(
    Preprocessing.of(config), str(folder)
  )
  _write_json(folder / "preprocessor_config.json", pixels)
  if data.clean != "none":
    logging.warning(
      "%s: its tokenizer does not do config.data.clean=%r; do that before",
      folder,
      data.clean,
    )
  name = export_tokenizer.save(folder, data, model.text.length)
  sidecar.save(folder, config, name)


def to_big_vision(file: pathlib.Path, params: Any, config: Any) -> None:
  """Writes a .npz with a `params/` before each name, layer by layer."""
  _check_pooling(config.model)
  rules = big_vision.rules(config.model)
  make_folder(file.parent)
  save_npz(
    file,
    (
      (f"params/{key}", shape, array)
      for key, shape, array in write_params(params, rules)
    ),
  )
  _save_beside(file, config)


def to_open_clip(file: pathlib.Path, params: Any, config: Any) -> None:
  """Writes a .safetensors file of `CustomTextCLIP`."""
  _check_pooling(config.model)
  rules = open_clip.rules(config.model)
  make_folder(file.parent)
  save_safetensors(file, write_params(params, rules), {"format": "pt"})
  _save_beside(file, config)


def _save_beside(file: pathlib.Path, config: Any) -> None:
  name = sidecar.copy_tokenizer(file, config.data.tokenizer)
  sidecar.save(file, config, name)


FORMATS = {
  "huggingface": to_huggingface,
  "big_vision": to_big_vision,
  "open_clip": to_open_clip,
}


def _check_pooling(model: Any) -> None:
  huggingface.to_config(model)  # All three know SigLIP's towers alone.


def make_folder(folder: pathlib.Path) -> None:
  """Makes a folder that is to hold an export.

  Raises:
    UserError: it cannot be made.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"{folder}: not writable ({error.strerror})") from error


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n")
