"""What happens to images and texts before a model sees them, as one value.

Configs, checkpoints, exports, serving bundles and folders of embeddings all
carry it; `Preprocessing.differences` alone says whether two are the same.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np

from big_siglip import shipped
from big_siglip.data import decoding, images, patches
from big_siglip.data.batch import Image
from big_siglip.data.squares import BLACK, Square
from big_siglip.data.text import make_tokenizer, Tokenizer
from big_siglip.errors import UserError
from big_siglip.schema.sizes import resolve_image

# Where `config` has each field.
_CONFIG = {
  "image_size": "config.model.image.image_size",
  "max_patches": "config.model.image.max_patches",
  "resize": "config.data.resize",
  "crop": "config.data.crop",
  "crop_fraction": "config.data.crop_fraction",
  "fill": "config.data.fill",
  "mean": "config.model.image.mean",
  "std": "config.model.image.std",
  "text_length": "config.model.text.length",
  "tokenizer": "config.data.tokenizer",
  "lowercase": "config.data.lowercase",
  "clean": "config.data.clean",
  "pad_id": "config.data.pad_id",
}
# What decides about the pixels that a model sees but for their number, and what
# decides about them all.
_COLORS = ("resize", "crop", "crop_fraction", "fill", "mean", "std")
_SEQUENCE = ("max_patches", "patch_size")
IMAGE_FIELDS = ("image_size", *_SEQUENCE, *_COLORS)
# What nothing can make up for: sizes are resampled, pieces are found by name.
RULES = (*_COLORS, "lowercase", "clean", "pad_id")
# A config of an image tower alone says nothing of texts.
_NO_TEXTS = dict.fromkeys(("tokenizer", "lowercase", "clean", "pad_id"))
_HALF = (0.5, 0.5, 0.5)
# What was done before there was a choice: older files do not say it.
_BEFORE = {
  "clean": "none",
  "crop": "none",
  "crop_fraction": 1.0,
  "fill": BLACK,
  "mean": _HALF,
  "std": _HALF,
  "max_patches": None,
  "patch_size": None,
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """All that decides which pixels and tokens a model sees, but augmentation.

  Attributes:
    image_size: side of an image in pixels.
    resize: see `images.resize`.
    text_length: tokens of a text. This and what follows of texts is None for
      an image tower alone.
    tokenizer: "bytes", or the path of its file, or a hash of it: see `hashed`.
    lowercase: whether A-Z become a-z first.
    clean: see `cleaning.prepare`.
    pad_id: the token that fills the end of a text.
    crop: how an image becomes a square, as the next two: see `squares.Square`.
    crop_fraction: of what is resized, the share of a side that is kept.
    fill: red, green and blue of what lies outside the image, 0 to 255.
    mean: of red, green and blue in [0, 1], which the model takes off.
    std: by which it divides then.
    max_patches: of an image that keeps its shape, as SigLIP 2's NaFlex models
      see it; `image_size` and the three of squares have no part in it. None:
      it becomes a square.
    patch_size: pixels along the side of such a patch.
  """

  image_size: int
  resize: str
  text_length: int | None
  tokenizer: str | None
  lowercase: bool | None
  clean: str | None
  pad_id: int | None
  crop: str = "none"
  crop_fraction: float = 1.0
  fill: tuple[int, ...] = BLACK
  mean: tuple[float, ...] = _HALF
  std: tuple[float, ...] = _HALF
  max_patches: int | None = None
  patch_size: int | None = None

  @classmethod
  def of(cls, config: Any) -> "Preprocessing":
    """Returns that of a config's sections `model` and `data`."""
    image, text = config.model.image, config.model.get("text")
    of_model = {name: image[name] for name in ("image_size", "mean", "std")}
    of_model["text_length"] = text and text.length
    if image.max_patches is not None:
      of_model["max_patches"] = image.max_patches
      of_model["patch_size"] = resolve_image(image).patch_size
    return cls.from_dict({**_NO_TEXTS, **config.data, **of_model})

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
    """Returns what `as_dict` gave, among other values maybe.

    Raises:
      UserError: a field is missing.
    """
    values = {**_BEFORE, **values}
    names = [field.name for field in dataclasses.fields(cls)]
    if missing := [name for name in names if name not in values]:
      raise UserError(f"preprocessing: has no {', '.join(missing)}")
    known = {name: values[name] for name in names}
    for name in ("fill", "mean", "std"):  # JSON has lists.
      if known[name] is not None:
        known[name] = tuple(known[name])
    return cls(**known)

  def as_dict(self) -> dict[str, Any]:
    """Returns all fields by name, for JSON; of squares none of sequences."""
    fields = dataclasses.asdict(self)
    if self.max_patches is None:
      fields = {k: v for k, v in fields.items() if k not in _SEQUENCE}
    return fields

  def data_fields(self) -> dict[str, Any]:
    """Returns the fields that stand in a config's section `data`."""
    return self._fields("config.data.")

  def image_fields(self) -> dict[str, Any]:
    """Returns those that stand in its section `model.image`."""
    return self._fields("config.model.image.")

  def square(self) -> Square:
    """Returns what makes a square of an image."""
    return Square(
      self.image_size, self.resize, self.crop, self.crop_fraction, self.fill
    )

  def hashed(self) -> "Preprocessing":
    """Returns the same with a hash of the tokenizer's file for its path."""
    return dataclasses.replace(self, tokenizer=_identity(self.tokenizer))

  def differences(
    self, other: "Preprocessing", fields: Sequence[str] = tuple(_CONFIG)
  ) -> list[str]:
    """Returns a line for each field that is not the same in another one.

    Tokenizers are the same if their files are, wherever they lie. None stands
    for what the other has, as in a config that takes it from weights, and in
    an image tower alone.

    Args:
      other: to compare with.
      fields: which count.
    """
    lines = []
    for field in fields:
      mine, theirs = getattr(self, field), getattr(other, field)
      if mine is None or theirs is None or mine == theirs:
        continue
      if field == "tokenizer" and _identity(mine) == _identity(theirs):
        continue
      lines.append(f"{_CONFIG[field]}={mine!r}, not {theirs!r}")
    return lines

  def _fields(self, prefix: str) -> dict[str, Any]:
    return {
      path.removeprefix(prefix): getattr(self, name)
      for name, path in _CONFIG.items()
      if path.startswith(prefix)
    }


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Makes what a model sees of images and texts, exactly: no augmentation.

  Attributes:
    value: what is done.
    tokenizer: of `value`; None for an image tower alone.
  """

  value: Preprocessing
  tokenizer: Tokenizer | None

  @classmethod
  def of(cls, value: Preprocessing) -> "Preprocess":
    """Reads the tokenizer's file.

    Raises:
      UserError: it is missing or wrong.
    """
    if value.tokenizer is None:
      return cls(value, None)
    made = make_tokenizer(
      value.tokenizer, value.lowercase, value.pad_id, value.clean
    )
    return cls(value, made)

  def image(self, image: bytes | np.ndarray) -> Image:
    """Returns what the image tower sees.

    Args:
      image: encoded; or uint8 [H, W, 3]; or embedded before, float32 [E].

    Returns:
      uint8 [image_size, image_size, 3], or patches and their grid where there
      are `max_patches`; an embedding stays as it is.

    Raises:
      BadImage: it cannot be decoded.
    """
    if isinstance(image, bytes):
      image = decoding.decode(image, self.value.resize)
    if image.ndim == 1:
      return image
    if self.value.max_patches is not None:
      return self._patches(image)
    return self.value.square()(image)

  def _patches(self, image: np.ndarray) -> Image:
    """Returns "patches" and their "grid" of uint8 [H, W, 3]."""
    length, patch = self.value.max_patches, self.value.patch_size
    if length is None or patch is None:
      raise UserError("preprocessing: max_patches needs a patch_size")
    height, width = image.shape[:2]
    grid = patches.grid_of(height, width, patch, length)
    shape = grid[0] * patch, grid[1] * patch
    resized = images.resize(image, shape, self.value.resize)
    return {
      "patches": patches.cut(resized, patch, length),
      "grid": np.array(grid, np.int32),
    }

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns what the text tower sees, int32 [len(texts), text_length].

    Raises:
      UserError: there is no text tower.
    """
    if self.tokenizer is None or self.value.text_length is None:
      raise UserError("this is an image tower alone: it sees no texts")
    return self.tokenizer(texts, self.value.text_length)


def _identity(tokenizer: str | None) -> str | None:
  """Returns what is equal for equal tokenizers: a hash of the file."""
  if tokenizer is None:
    return None
  file = shipped.find(tokenizer)
  if tokenizer == "bytes" or not file.exists():
    return tokenizer
  return hashlib.sha256(file.read_bytes()).hexdigest()
