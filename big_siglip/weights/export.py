"""Writes a model as transformers, big_vision, open_clip and ONNX read it.

The preprocessing goes with it, in a file of our own where theirs have no place.
"""

from collections.abc import Sequence
import itertools
import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import UserError
from big_siglip.weights import (
  big_vision,
  export_tokenizer,
  huggingface,
  image_processor,
  onnx_towers,
  open_clip,
  open_clip_config,
  sidecar,
)
from big_siglip.weights.npz import save_npz
from big_siglip.weights.rules import write_params
from big_siglip.weights.tensors import save_safetensors


class Classifier(NamedTuple):
  """A classifier on embeddings of images.

  Attributes:
    weights: [E, C] float32, E the embedding's width, C the labels.
    bias: [C] float32.
    labels: C.
  """

  weights: np.ndarray
  bias: np.ndarray
  labels: Sequence[str]


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
  tokenizer = export_tokenizer.make(data, model.text.length)
  tensors = itertools.chain(
    write_params(params, huggingface.rules(model)),
    huggingface.identity_head(model),
  )
  make_folder(folder)
  save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
  _write_json(folder / "config.json", made)
  _save_preprocessing(folder, config, tokenizer)


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


def to_open_clip(
  place: pathlib.Path, params: Any, config: Any, name: str | None = None
) -> None:
  """Writes `CustomTextCLIP`: a .safetensors file, or a folder.

  The folder has open_clip's config, and is what its "local-dir:" and "hf-hub:"
  load, towers, tokenizer and preprocessing.

  Args:
    place: to be made.
    params: the parameters.
    config: `model` and `data`.
    name: of the hub's repository that it is for, if any.

  Raises:
    UserError: open_clip has no such model; timm names no such image tower.
  """
  _check_pooling(config.model)
  rules = open_clip.rules(config.model)
  tensors = write_params(params, rules)
  if place.suffix == ".safetensors":
    make_folder(place.parent)
    save_safetensors(place, tensors, {"format": "pt"})
    _save_beside(place, config)
    return
  made = open_clip_config.make(config, name or place.name)
  tokenizer = export_tokenizer.make(config.data, config.model.text.length)
  make_folder(place)
  file = place / "open_clip_model.safetensors"
  save_safetensors(file, tensors, {"format": "pt"})
  _write_json(place / "open_clip_config.json", made)
  _save_preprocessing(place, config, tokenizer)


def to_onnx(
  folder: pathlib.Path,
  params: Any,
  config: Any,
  classifier: Classifier | None = None,
) -> None:
  """Writes each tower as a graph: image.onnx and text.onnx, see `onnx_towers`.

  Args:
    folder: to be made.
    params: the parameters.
    config: `model` and `data`.
    classifier: written as classifier.onnx, a whole image tower with
      probabilities, and classifier.json, the labels in their order.

  Raises:
    UserError: onnx is not installed, or a tower has no embedding.
  """
  onnx_towers.check(config.model)
  tokenizer = export_tokenizer.make(config.data, config.model.text.length)
  make_folder(folder)
  metadata = {
    "logit_scale": str(math.exp(params["logit_scale"])),
    "logit_bias": str(float(params["logit_bias"])),
  }
  for tower in ("image", "text"):
    file = folder / f"{tower}.onnx"
    onnx_towers.save(file, tower, params, config.model, metadata)
  if classifier is not None:
    about = {"labels": list(classifier.labels)}
    onnx_towers.save(
      folder / "classifier.onnx",
      "image",
      params,
      config.model,
      {key: json.dumps(value) for key, value in about.items()},
      (classifier.weights, classifier.bias),
    )
    _write_json(folder / "classifier.json", about)
  _save_preprocessing(folder, config, tokenizer)


def _save_preprocessing(
  folder: pathlib.Path, config: Any, tokenizer: export_tokenizer.Exported
) -> None:
  """Writes what `AutoProcessor` reads, and all of it for ourselves."""
  pixels = image_processor.to_transformers(
    Preprocessing.of(config), str(folder)
  )
  _write_json(folder / "preprocessor_config.json", pixels)
  sidecar.save(folder, config, tokenizer.save(folder))


def _save_beside(file: pathlib.Path, config: Any) -> None:
  name = sidecar.copy_tokenizer(file, config.data.tokenizer)
  sidecar.save(file, config, name)


# What `open_weights` reads again.
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
