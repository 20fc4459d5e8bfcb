"""What image processors of transformers do: fields of `Preprocessing`.

They stand in `processor_config.json`, and in older folders in
`preprocessor_config.json`. What a file leaves out is what its class assumes.
Every key is done, is refused by name, or is known to change no pixel; one that
nobody knows here is refused, unless it is false or null. The reference is the
class that resizes with Pillow.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

from absl import logging

from big_siglip.data.preprocessing import Preprocessing
from big_siglip.weights import said
from big_siglip.weights.tensors import read_json

_HALF = (0.5, 0.5, 0.5)
# transformers' image processors, and what each does where its file is silent.
_COMMON = {
  "do_resize": True,
  "do_rescale": True,
  "rescale_factor": 1 / 255,
  "do_normalize": True,
  "image_mean": _HALF,
  "image_std": _HALF,
  "size": {"height": 224, "width": 224},
  "do_center_crop": False,
  "crop_size": {"height": 224, "width": 224},
  "do_pad": False,
}
_SIGLIP = {**_COMMON, "resample": 3, "default_to_square": False}
_CLIP = {
  **_SIGLIP,
  "size": {"shortest_edge": 224},
  "do_center_crop": True,
  "image_mean": said.OPENAI_MEAN,
  "image_std": said.OPENAI_STD,
}
_VIT = {**_COMMON, "resample": 2, "default_to_square": True}
_TYPES: dict[str, dict[str, Any]] = {
  "SiglipImageProcessor": _SIGLIP,
  "CLIPImageProcessor": _CLIP,
  "BitImageProcessor": _CLIP,
  "ViTImageProcessor": _VIT,
  "Gemma3ImageProcessor": _VIT,
}
# They show a language model tiles of an image, and the whole one besides.
_TILED = {
  "Idefics3ImageProcessor": {**_COMMON, "resample": 1},
  "SmolVLMImageProcessor": {**_COMMON, "resample": 1},
  "LlavaOnevisionImageProcessor": {
    **_SIGLIP,
    "image_mean": said.OPENAI_MEAN,
    "image_std": said.OPENAI_STD,
  },
}
# Of NaFlex models, which see patches.
_NAFLEX = "Siglip2ImageProcessor"
_PATCHES: dict[str, Any] = {
  key: value
  for key, value in _COMMON.items()
  if key.startswith(("do_re", "do_normalize", "rescale", "image_"))
}
_PATCHES |= {"resample": 2, "patch_size": 16, "max_num_patches": 256}
_TILING = frozenset(
  {
    *("do_image_splitting", "max_image_size", "return_row_col_info"),
    *("image_grid_pinpoints", "video_sampling"),
  }
)
# Keys that change no pixel of an RGB image; all others are made RGB.
HARMLESS = frozenset(
  {
    *("image_processor_type", "feature_extractor_type", "processor_class"),
    *("_processor_class", "_valid_processor_keys", "auto_map", "use_fast"),
    *("do_convert_rgb", "data_format", "input_data_format", "device"),
    *("return_tensors", "disable_grouping", "image_seq_length"),
    *("image_seq_len", "model_input_names", "transformers_version"),
    # Of do_pan_and_scan, which is refused.
    *("pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops"),
    "pan_and_scan_min_ratio_to_activate",
  }
)


def read_transformers(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what transformers does, whose files have this order; {} if none.

  Raises:
    UserError: a file is damaged, or asks for what is not done here.
  """
  file = folder / "processor_config.json"
  if file.is_file():
    processor = read_json(file).get("image_processor")
    if processor is not None:
      return from_transformers(processor, str(file))
  file = folder / "preprocessor_config.json"
  if file.is_file():
    return from_transformers(read_json(file), str(file))
  return {}


def from_transformers(given: Any, file: str) -> dict[str, Any]:
  """Returns what an image processor of transformers does.

  Args:
    given: its JSON object.
    file: what to call it.

  Raises:
    UserError: it does something else.
  """
  given = said.as_object(given, file, "image_processor")
  kind = given.get("image_processor_type") or given.get(
    "feature_extractor_type", "SiglipImageProcessor"
  )
  name = str(kind).replace("FeatureExtractor", "ImageProcessor")
  name = name.removesuffix("Fast").removesuffix("Pil")
  every = {**_TYPES, **_TILED, _NAFLEX: _PATCHES}
  defaults = every.get(name)
  if defaults is None:
    rule = f"must be one of {', '.join(every)}"
    said.refuse(file, "image_processor_type", kind, rule)
  tiled = name in _TILED
  known = {*defaults, "pad_size", "default_to_square", *HARMLESS}
  said.check_keys(given, known | (_TILING if tiled else set()), file)
  asked = {key: value for key, value in given.items() if value is not None}
  asked = {**defaults, **asked}
  for key in (key for key in asked if key.startswith("do_")):
    is_right, rule = isinstance(asked[key], bool), "must be true or false"
    said.require(is_right, file, key, asked[key], rule)
  rule = "must be true: images come in many sizes"
  said.require(asked["do_resize"], file, "do_resize", False, rule)
  found = {
    "resize": said.resample(asked["resample"], file, "resample"),
    **_affine(asked, file),
  }
  if name == _NAFLEX:
    return found | {
      "max_patches": said.pixels(
        asked["max_num_patches"], file, "max_num_patches"
      ),
      "patch_size": said.pixels(asked["patch_size"], file, "patch_size"),
    }
  if tiled:
    logging.warning(
      "%s: the tower sees whole images, no tiles (%s)", file, kind
    )
    return found
  found |= _shape(asked, file)
  if given.get("size") is None and given.get("crop_size") is None:
    del found["image_size"]  # That of the class; the model's own will do.
  return found


def _shape(asked: Mapping[str, Any], file: str) -> dict[str, Any]:
  """Returns image_size, crop and crop_fraction."""
  side, squashed = _resized(asked, file)
  pixels = side
  if asked["do_center_crop"]:
    pixels = said.side(asked["crop_size"], file, "crop_size")
  elif not squashed:
    rule = "must be height and width, or do_center_crop with it"
    said.refuse(file, "size", asked["size"], rule)
  if asked["do_pad"] and asked.get("pad_size") is not None:
    padded = said.side(asked["pad_size"], file, "pad_size")
    rule = f"must be that of the image, {pixels}"
    said.require(padded == pixels, file, "pad_size", asked["pad_size"], rule)
  return {
    "image_size": pixels,
    "crop": "none" if squashed else "center",
    "crop_fraction": said.crop_fraction(pixels, side, file, "crop_size"),
  }


def _resized(asked: Mapping[str, Any], file: str) -> tuple[int, bool]:
  """Returns pixels of a side, of both sides (True) or of the shorter one."""
  size = asked["size"]
  if isinstance(size, Mapping):
    keys = {key for key, value in size.items() if value is not None}
    if keys == {"shortest_edge"}:
      return said.pixels(size["shortest_edge"], file, "size"), False
  elif type(size) is int and not asked["default_to_square"]:
    return said.pixels(size, file, "size"), False
  return said.side(size, file, "size"), True


def _affine(asked: Mapping[str, Any], file: str) -> dict[str, Any]:
  """Returns mean and std for images in [0, 1], whatever theirs are for."""
  mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
  if asked["do_normalize"]:
    mean = said.rgb(asked["image_mean"], file, "image_mean")
    std = said.rgb(asked["image_std"], file, "image_std", above=0.0)
  factor = asked["rescale_factor"] if asked["do_rescale"] else 1.0
  said.require(
    type(factor) in (int, float) and 0 < factor < math.inf,
    *(file, "rescale_factor", factor, "must be a number above 0"),
  )
  white = 255 * factor  # Before mean and std.
  if not math.isclose(white, 1, rel_tol=1e-6):
    mean, std = (tuple(v / white for v in each) for each in (mean, std))
    rule = "with image_mean and image_std, leads beyond all pixels"
    is_right = max(map(abs, (*mean, *std))) <= 255
    said.require(is_right, file, "rescale_factor", factor, rule)
  return {"mean": mean, "std": std}


def to_transformers(made: Preprocessing, folder: str) -> dict[str, Any]:
  """Returns the preprocessor_config.json of a preprocessing.

  Args:
    made: the preprocessing.
    folder: what to call the export in a warning, where transformers has no such
      thing and the nearest is written.
  """
  if made.max_patches is not None:
    return _of_patches(made, folder)
  square = made.square()
  tall, wide = square.resized(1, 1)
  crops = made.crop != "none"
  if made.crop not in ("none", "center"):
    _warn(folder, "crop", made.crop, "center")
  size = {"height": tall, "width": wide}
  found = {
    "image_processor_type": "SiglipImageProcessor",
    "processor_class": "SiglipProcessor",
    "size": {"shortest_edge": tall} if crops else size,
    **_pixels(made, folder),
  }
  if crops or tall != made.image_size:
    side = {"height": made.image_size, "width": made.image_size}
    found |= {"do_center_crop": True, "crop_size": side}
  return found


def _of_patches(made: Preprocessing, folder: str) -> dict[str, Any]:
  """Returns that of a NaFlex model."""
  return {
    "image_processor_type": _NAFLEX,
    "processor_class": "Siglip2Processor",
    "patch_size": made.patch_size,
    "max_num_patches": made.max_patches,
    **_pixels(made, folder),
  }


def _pixels(made: Preprocessing, folder: str) -> dict[str, Any]:
  """Returns what all of them have."""
  filter_ = made.resize
  if filter_ not in said.FILTERS:
    filter_ = "bilinear"
    _warn(folder, "resize", made.resize, filter_)
  return {
    "do_resize": True,
    "resample": said.FILTERS.index(filter_),
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(made.mean),
    "image_std": list(made.std),
    "do_convert_rgb": True,
  }


def _warn(folder: str, field: str, value: str, nearest: str) -> None:
  logging.warning(
    "%s: its image processor does not do config.data.%s=%r; %r stands "
    "there, the nearest that it knows",
    *(folder, field, value, nearest),
  )
