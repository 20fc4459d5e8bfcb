"""Says whose weights a file or folder holds."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

from big_siglip.errors import UserError
from big_siglip.schema import sizes
from big_siglip.weights import (
  big_vision,
  huggingface,
  npz,
  open_clip,
  sidecar,
  tensors,
)
from big_siglip.weights.image_transforms import read_open_clip
from big_siglip.weights.rules import Reader, Rule

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights on disk, none of them read yet.

  Attributes:
    format: "huggingface", "big_vision" or "open_clip".
    reader: the arrays.
    model: our `config.model` of them.
    rules: the table from their names to ours.
    folder: what lies beside them (tokenizer, preprocessing), or None.
    preprocessing: as much of it as a file of ours or of open_clip's says:
      image_size, num_heads and fields of `config.data`.
  """

  format: str
  reader: Reader
  model: Any
  rules: Sequence[Rule]
  folder: pathlib.Path | None
  preprocessing: Mapping[str, Any]


def open_weights(path: str) -> Weights:
  """Returns the weights of a SigLIP or SigLIP 2 model of one resolution.

  Args:
    path: a .safetensors or .npz file, a folder of transformers or open_clip, or
      the id of a repository on the Hugging Face hub.

  Raises:
    UserError: nothing lies there, or no such model, or a format that could
      run code when loaded (pickle), which is refused.
  """
  place = pathlib.Path(path).expanduser()
  if not place.exists():
    if not _REPOSITORY.fullmatch(path):
      raise UserError(f"{path}: no such file or folder")
    place = _download(path)
  if place.is_file() and place.suffix != ".safetensors":
    return _open_npz(place)
  reader = tensors.Safetensors(place)
  shapes = reader.shapes()
  folder = place if place.is_dir() else place.parent
  known = sidecar.read(place)
  if any(key.startswith("visual.trunk.") for key in shapes):
    model = open_clip.infer_config(shapes, reader.path, known.get("num_heads"))
    known = known or read_open_clip(folder)
    _set_image_size(model, known, reader.path)
    rules = open_clip.rules(model)
    return Weights("open_clip", reader, model, rules, folder, known)
  config = folder / "config.json"
  if config.is_file():
    model = huggingface.model_config(tensors.read_json(config), str(config))
  else:
    model = huggingface.infer_config(shapes, reader.path)
    _set_image_size(model, known, reader.path)
  rules = huggingface.rules(model)
  return Weights("huggingface", reader, model, rules, folder, known)


def _open_npz(place: pathlib.Path) -> Weights:
  with place.open("rb") as stream:
    start = stream.read(4)
  if place.suffix in tensors.PICKLED or start[:1] == b"\x80":
    raise UserError(
      f"{place}: may hold pickled code, which is never loaded; convert it to "
      "safetensors where it comes from"
    )
  if place.suffix != ".npz":
    raise UserError(f"{place}: must be .safetensors, .npz or a folder")
  reader: Reader = npz.Npz(place)
  if big_vision.SummedPositions.EXTRA in reader.shapes():
    reader = big_vision.SummedPositions(reader)
  shapes = reader.shapes()
  model = big_vision.infer_config(shapes, reader.path)
  stacked = big_vision.stacked_towers(shapes)
  rules = big_vision.rules(model, stacked)
  known = sidecar.read(place)
  _set_image_size(model, known, reader.path)
  return Weights("big_vision", reader, model, rules, None, known)


def _set_image_size(model: Any, known: Mapping[str, Any], path: str) -> None:
  """Says how many pixels there are with those that no patch covers."""
  image, pixels = model.image, known.get("image_size")
  if pixels is None:
    return
  patch = sizes.resolve_image(image).patch_size
  if pixels // patch != image.image_size // patch:
    raise UserError(
      f"{path}: image_size={pixels} is said beside it, and its patches of "
      f"{patch} pixels cover {image.image_size // patch * patch}"
    )
  image.image_size, image.drop_border = pixels, pixels % patch != 0


def _download(repository: str) -> pathlib.Path:
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(
      f"{repository}: no such file or folder; to fetch a repository of that "
      "name: pip install huggingface_hub"
    ) from error
  try:
    patterns = ["*.json", "*.safetensors", "*.model"]
    folder = huggingface_hub.snapshot_download(
      repository, allow_patterns=patterns
    )
  except Exception as error:  # The network, the hub and the disk all have many.
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      f"{repository}: neither a path nor a repository that can be fetched "
      f"({type(error).__name__}: {reason})"
    ) from error
  return pathlib.Path(folder)
