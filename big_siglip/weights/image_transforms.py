"""What open_clip and timm do with images: fields of `Preprocessing`.

Every key of `open_clip_config.json`'s `preprocess_cfg` and of timm's
`pretrained_cfg` is done, is refused by name, or is known to change no pixel;
what is left out is what these projects assume then.
"""

import math
import pathlib
from typing import Any

from big_siglip.data import squares
from big_siglip.errors import UserError
from big_siglip.weights import said
from big_siglip.weights.tensors import read_json

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def read_open_clip(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what open_clip does with its `open_clip_config.json`, if any.

  Raises:
    UserError: it is damaged, or asks for what is not done here.
  """
  path = folder / "open_clip_config.json"
  if not path.is_file():
    return {}
  file, config = str(path), read_json(path)
  model = said.as_object(config.get("model_cfg"), file, "model_cfg")
  vision = said.as_object(model.get("vision_cfg"), file, "vision_cfg")
  if "image_size" not in vision:
    raise UserError(f"{file}: says no image_size")
  pixels = said.side(vision["image_size"], file, "image_size")
  given = said.as_object(
    config.get("preprocess_cfg", {}), file, "preprocess_cfg"
  )
  asked = {
    "size": pixels,
    "mode": "RGB",
    "mean": said.OPENAI_MEAN,
    "std": said.OPENAI_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
  }
  said.check_keys(given, asked, file)
  asked.update({k: v for k, v in given.items() if v is not None})
  said.require(
    asked["mode"] == "RGB", file, "mode", asked["mode"], "must be RGB"
  )
  modes = {"squash": "none", "shortest": "shortest", "longest": "longest"}
  rule = f"must be one of {', '.join(modes)}"
  mode = asked["resize_mode"]
  said.require(mode in [*modes], file, "resize_mode", mode, rule)
  method = asked["interpolation"]
  rule = "must be one of bicubic, bilinear, random"
  known = method in ("bicubic", "bilinear", "random")
  said.require(known, file, "interpolation", method, rule)
  return {
    "image_size": pixels,
    # "random" is of training; then it is bicubic.
    "resize": "bilinear" if method == "bilinear" else "bicubic",
    "crop": modes[mode],
    "mean": said.rgb(asked["mean"], file, "mean"),
    "std": said.rgb(asked["std"], file, "std", above=0.0),
    "fill": said.levels(asked["fill_color"], file, "fill_color"),
  }


# What of timm's pretrained_cfg is no matter of pixels; test_* are the sizes of
# an evaluation that asks for them.
TIMM_HARMLESS = frozenset(
  {
    *("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"),
    *("architecture", "tag", "custom_load", "test_input_size", "test_crop_pct"),
    *("min_input_size", "fixed_input_size", "num_classes", "label_offset"),
    *("label_names", "label_descriptions", "pool_size", "test_pool_size"),
    *("first_conv", "classifier", "license", "description", "origin_url"),
    *("paper_name", "paper_ids", "notes"),
  }
)


def read_timm(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what timm does in evaluation with its config.json, if any.

  Raises:
    UserError: it is damaged, or asks for what is not done here.
  """
  path = folder / "config.json"
  given = read_json(path).get("pretrained_cfg") if path.is_file() else None
  return {} if given is None else from_timm(given, str(path))


def from_timm(given: Any, file: str) -> dict[str, Any]:
  """Returns what timm's evaluation transform does with a pretrained_cfg.

  Args:
    given: its JSON object.
    file: what to call it.

  Raises:
    UserError: it asks for what is not done here.
  """
  given = said.as_object(given, file, "pretrained_cfg")
  asked = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": _IMAGENET_MEAN,
    "std": _IMAGENET_STD,
  }
  said.check_keys(given, {*asked, *TIMM_HARMLESS}, file)
  asked.update({k: given[k] for k in asked if given.get(k)})
  size, share = asked["input_size"], asked["crop_pct"]
  rule = "must be 3, height and width"
  said.require(
    isinstance(size, list) and len(size) == 3 and size[0] == 3,
    *(file, "input_size", size, rule),
  )
  pixels = said.side(size[1:], file, "input_size")
  said.require(
    type(share) in (int, float) and 0 < share < math.inf,
    *(file, "crop_pct", share, "must be a number above 0"),
  )
  side = math.floor(pixels / share)
  modes = {"squash": "none", "center": "shortest", "border": "longest"}
  mode = asked["crop_mode"]
  rule = f"must be one of {', '.join(modes)}"
  said.require(mode in [*modes], file, "crop_mode", mode, rule)
  start, wanted = (
    squares.Square(pixels, crop=crop).start(side)
    for crop in ("none", "shortest")
  )
  if mode == "squash" and start != wanted:
    rule = f"must leave an even border: {side} to {pixels} pixels"
    said.refuse(file, "crop_pct", share, rule)
  mean = said.rgb(asked["mean"], file, "mean")
  fill = tuple(round(255 * value) for value in mean)
  return {
    "image_size": pixels,
    "resize": said.resample(asked["interpolation"], file, "interpolation"),
    "crop": modes[mode],
    "crop_fraction": said.crop_fraction(pixels, side, file, "crop_pct"),
    "mean": mean,
    "std": said.rgb(asked["std"], file, "std", above=0.0),
    "fill": fill if mode == "border" else squares.BLACK,
  }
