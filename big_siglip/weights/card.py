"""The model card of an exported folder, README.md, as the hub shows it."""

from collections.abc import Mapping
import pathlib
from typing import Any

from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import UserError
from big_siglip.schema import sizes

# The library that the hub names, and how a folder is loaded.
_LIBRARIES = {"huggingface": "transformers", "open_clip": "open_clip"}
_LOADING = {
  "huggingface": """\
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
inputs = processor(
  text=["a photo of a cat", "a photo of a dog"],
  images=Image.open("photo.jpg"),
  padding="max_length",
  truncation=True,
  return_tensors="pt",
)
probabilities = model(**inputs).logits_per_image.sigmoid()
""",
  "open_clip": """\
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("{name}")
tokenizer = open_clip.get_tokenizer("{name}")
""",
  "onnx": """\
import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoProcessor

folder = "{name}"  # Of the hub: huggingface_hub.snapshot_download("{name}")
processor = AutoProcessor.from_pretrained(folder)
inputs = processor(
  text=["a photo of a cat", "a photo of a dog"],
  images=Image.open("photo.jpg"),
  padding="max_length",
  truncation=True,
  return_tensors="np",
)
image, text = (
  onnxruntime.InferenceSession(f"{{folder}}/{{tower}}.onnx")
  for tower in ("image", "text")
)
(images,) = image.run(None, {{"pixel_values": inputs["pixel_values"]}})
(texts,) = text.run(None, {{"input_ids": inputs["input_ids"]}})
said = image.get_modelmeta().custom_metadata_map
logits = images @ texts.T * float(said["logit_scale"])
probabilities = 1 / (1 + np.exp(-logits - float(said["logit_bias"])))
""",
}


def save(
  folder: pathlib.Path,
  style: str,
  config: Any,
  numbers: Mapping[str, tuple[int, float]],
  name: str | None = None,
) -> None:
  """Writes README.md.

  Of paths the last part alone is told: the card may become public. The license
  is for the user to name.

  Args:
    folder: that was exported.
    style: "huggingface", "open_clip" or "onnx".
    config: of a run, or `model` and `data` alone.
    numbers: (step, value) of each "evals/NAME/METRIC".
    name: of the repository that it is for; None: the folder's.

  Raises:
    UserError: the file cannot be written.
  """
  title = (name or folder.name).rpartition("/")[2]
  parts = [
    _front(style),
    f"# {title}\n",
    _model(config.model),
    _training(config),
    _preprocessing(config),
    _evaluation(numbers),
    _usage(style, name, folder.name),
  ]
  try:
    text = "\n".join(part for part in parts if part)
    (folder / "README.md").write_text(text, encoding="utf-8")
  except OSError as error:
    raise UserError(f"{folder}: not writable ({error.strerror})") from error


def _front(style: str) -> str:
  lines = [
    "---",
    "# license: choose one, such as apache-2.0",
    f"library_name: {_LIBRARIES.get(style, style)}",
    "pipeline_tag: zero-shot-image-classification",
    "tags:",
    "- siglip",
    "- vision",
    *(["- onnx"] if style == "onnx" else []),
    "- big_siglip",
    "---\n",
  ]
  return "\n".join(lines)


def _model(model: Any) -> str:
  image, text = sizes.resolve_image(model.image), sizes.resolve_text(model.text)
  pixels = model.image.image_size
  seen = f"{pixels} x {pixels} pixels in"
  if model.image.max_patches:
    length = model.image.max_patches
    seen = f"images in their own shape (NaFlex), up to {length}"
  return (
    "A SigLIP model (arXiv:2303.15343): an image and a text tower whose "
    f"embeddings have {model.embed_dim or image.width} numbers.\n\n"
    "| tower | width | depth | MLP | heads | reads |\n"
    "|---|---|---|---|---|---|\n"
    f"| image | {image.width} | {image.depth} | {image.mlp_dim} | "
    f"{image.num_heads} | {seen} patches of {image.patch_size} pixels |\n"
    f"| text | {text.width} | {text.depth} | {text.mlp_dim} | {text.num_heads} "
    f"| {model.text.length} tokens of {model.text.vocab_size:,} |\n"
  )


def _training(config: Any) -> str:
  if not config.get("total_steps"):
    return "## Training\n\nIts weights were imported; no run is known.\n"
  data = config.data
  sources = list((data.get("mixture") or {}).values()) or [data]
  rows = {
    "data": "; ".join(map(_source, sources)),
    "steps": f"{config.total_steps:,}",
    "batch size": config.get("batch_size"),
    "loss": _field(config, "loss", "name"),
    "optimizer": _field(config, "optimizer", "name"),
    "learning rate": _field(config, "optimizer", "learning_rate"),
    "started from": _last(_field(config, "init", "path")) or "random weights",
  }
  lines = [f"- {name}: {value}" for name, value in rows.items() if value]
  return "\n".join(["## Training\n", "Trained with big_siglip.\n", *lines, ""])


def _field(config: Any, section: str, name: str) -> Any:
  """Returns a field of a section, which an older run may lack."""
  return (config.get(section) or {}).get(name)


def _source(data: Any) -> str:
  """Returns the name of a data set, with the last part of its path."""
  parts = data.get("name"), _last(data.get("path")), data.get("split")
  return " ".join(str(part) for part in parts if part)


def _last(path: Any) -> str:
  """Returns the last part of one or several paths."""
  paths = path if isinstance(path, (tuple, list)) else [path]
  return ", ".join(
    str(one).rstrip("/").rpartition("/")[2] for one in paths if one
  )


def _preprocessing(config: Any) -> str:
  made = Preprocessing.of(config)
  size = f"{made.image_size} x {made.image_size} pixels"
  shape = f"{size}, resize {made.resize}, crop {made.crop}"
  if made.max_patches:
    shape = f"up to {made.max_patches} patches, resize {made.resize}"
  cleaned = "" if made.clean == "none" else f", cleaned ({made.clean})"
  return (
    "## Preprocessing\n\n"
    f"- images: {shape}, mean {list(made.mean)}, deviation {list(made.std)}\n"
    f"- texts: {'A-Z lowercased' if made.lowercase else 'case kept'}{cleaned}, "
    f"cut after {made.text_length} tokens, ended, then filled up "
    f"with token {made.pad_id}\n"
  )


def _evaluation(numbers: Mapping[str, tuple[int, float]]) -> str:
  if not numbers:
    return ""
  rows = [
    f"| {name.removeprefix('evals/')} | {value:.4g} | {step:,} |"
    for name, (step, value) in sorted(numbers.items())
  ]
  head = ["## Evaluation\n", "| metric | value | step |", "|---|---|---|"]
  return "\n".join([*head, *rows, ""])


def _usage(style: str, name: str | None, folder: str) -> str:
  place = name or folder
  if style == "open_clip":
    place = f"hf-hub:{name}" if name else f"local-dir:{folder}"
  return f"## Use\n\n```python\n{_LOADING[style].format(name=place)}```\n"
