"""What happens to images and texts before a model sees them, as one value.

Configs, checkpoints, exports, serving bundles and folders of embeddings all
carry it; `Preprocessing.differences` alone says whether two are the same.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
from typing import Any

from etils import epath
import numpy as np

from big_siglip.data import images
from big_siglip.data.text import make_tokenizer, Tokenizer
from big_siglip.errors import UserError
from big_siglip.schema.sizes import has_text_tower

# Where `config` has each field.
_CONFIG = {
  "image_size": "config.model.image.image_size",
  "resize": "config.data.resize",
  "crop": "config.data.crop",
  "mean": "config.data.mean",
  "std": "config.data.std",
  "text_length": "config.model.text.length",
  "tokenizer": "config.data.tokenizer",
  "lowercase": "config.data.lowercase",
  "clean": "config.data.clean",
  "pad_id": "config.data.pad_id",
}
# What decides about the pixels that a model sees.
IMAGE_FIELDS = ("image_size", "resize", "crop", "mean", "std")
# What nothing can make up for: sizes are resampled, pieces are found by name.
RULES = ("resize", "crop", "mean", "std", "lowercase", "clean", "pad_id")
_HALF = (0.5, 0.5, 0.5)
# Fields that have room for values which nothing does yet.
_ONLY = {"crop": "none", "mean": _HALF, "std": _HALF}
# What was done before there was a choice: older files do not say it.
_BEFORE = {"clean": "none", **_ONLY}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """All that decides which pixels and tokens a model sees, but augmentation.

  Attributes:
    image_size: side of an image in pixels.
    resize: "bilinear", "bicubic" or "big_vision".
    text_length: tokens of a text. This and what follows of texts is None for
      an image tower alone.
    tokenizer: "bytes", or the path of its file, or a hash of it: see `hashed`.
    lowercase: whether A-Z become a-z first.
    clean: see `cleaning.prepare`.
    pad_id: the token that fills the end of a text.
    crop: "none": the whole image is squashed to a square.
    mean: of red, green and blue in [0, 1], which the model takes off.
    std: by which it divides then.
  """

  image_size: int
  resize: str
  text_length: int | None
  tokenizer: str | None
  lowercase: bool | None
  clean: str | None
  pad_id: int | None
  crop: str = "none"
  mean: tuple[float, ...] = _HALF
  std: tuple[float, ...] = _HALF

  def __post_init__(self):
    for field, only in _ONLY.items():
      value = getattr(self, field)
      if value != only:
        raise UserError(
          f"preprocessing: {field}={value!r}: must be {only!r}; no other is"
          " known here"
        )

  @classmethod
  def of(cls, config: Any) -> "Preprocessing":
    """Returns that of a config's sections `model` and `data`."""
    sizes = {
      "image_size": config.model.image.image_size,
      "text_length": None,
    }
    if has_text_tower(config.model):
      sizes["text_length"] = config.model.text.length
    return cls.from_dict({**config.data, **sizes})

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
    """Returns what `as_dict` gave, among other values maybe.

    Raises:
      UserError: a field is missing, or has a value that nothing does yet.
    """
    values = {**_BEFORE, **values}
    names = [field.name for field in dataclasses.fields(cls)]
    if missing := [name for name in names if name not in values]:
      raise UserError(f"preprocessing: has no {', '.join(missing)}")
    known = {name: values[name] for name in names}
    for name in ("mean", "std"):  # JSON has lists.
      known[name] = tuple(known[name])
    return cls(**known)

  def as_dict(self) -> dict[str, Any]:
    """Returns all fields by name, for JSON."""
    return dataclasses.asdict(self)

  def data_fields(self) -> dict[str, Any]:
    """Returns the fields that stand in a config's section `data`."""
    prefix = "config.data."
    return {
      path.removeprefix(prefix): getattr(self, name)
      for name, path in _CONFIG.items()
      if path.startswith(prefix) and name not in _ONLY
    }

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

  def image(self, image: bytes | np.ndarray) -> np.ndarray:
    """Returns what the image tower sees.

    Args:
      image: encoded; or uint8 [H, W, 3]; or embedded before, float32 [E].

    Returns:
      uint8 [image_size, image_size, 3]; an embedding stays as it is.

    Raises:
      BadImage: it cannot be decoded.
    """
    if isinstance(image, bytes):
      image = images.decode(image)
    if image.ndim == 1:
      return image
    return images.resize(image, self.value.image_size, self.value.resize)

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns what the text tower sees, int32 [len(texts), text_length]."""
    return self.tokenizer(texts, self.value.text_length)


def _identity(tokenizer: str | None) -> str | None:
  """Returns what is equal for equal tokenizers: a hash of the file."""
  if tokenizer is None:
    return None
  file = epath.Path(tokenizer).expanduser()
  if tokenizer == "bytes" or not file.exists():
    return tokenizer
  return hashlib.sha256(file.read_bytes()).hexdigest()
