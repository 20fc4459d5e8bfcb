"""Says whose weights a file or folder holds."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

from big_siglip.errors import UserError
from big_siglip.schema import sizes
from big_siglip.weights import (
  adapters,
  big_vision,
  huggingface,
  huggingface_config,
  npz,
  open_clip,
  places,
  sidecar,
  tensors,
  zarr,
)
from big_siglip.weights.image_transforms import read_open_clip
from big_siglip.weights.names import Named, recognize
from big_siglip.weights.rules import Reader, Rule

_NAMINGS = {
  "open_clip": open_clip.NAMING,
  "open_clip_naflex": open_clip.NAFLEX_NAMING,
  "huggingface": huggingface.NAMING,
  "big_vision": big_vision.NAMING,
}
_MOST_NAMES = 3  # Of arrays, where none is known.


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights on disk, none of them read yet.

  Attributes:
    format: "huggingface", "big_vision" or "open_clip".
    reader: the arrays.
    model: our `config.model` of them; without `text` for an image tower alone.
    rules: the table from their names to ours.
    folder: what lies beside them (tokenizer, preprocessing), or None.
    preprocessing: as much of it as a file of ours or of open_clip's says:
      image_size, num_heads and fields of `config.data`.
    notes: a line for each thing that was chosen, left out or added.
  """

  format: str
  reader: Reader
  model: Any
  rules: Sequence[Rule]
  folder: pathlib.Path | None
  preprocessing: Mapping[str, Any]
  notes: tuple[str, ...] = ()


def open_weights(path: str, base: str | None = None) -> Weights:
  """Returns the weights of a SigLIP or SigLIP 2 model, of NaFlex too.

  Args:
    path: a .safetensors or .npz file, a folder of transformers or open_clip, a
      checkpoint of big_vision's (checkpoint.bv-000010000), or the id of a
      repository on the Hugging Face hub. Of an image tower alone,
      and of a language model that has one, the image tower is taken.
    base: the same, where `path` is an adapter (LoRA of PEFT): the weights that
      it is of; None: those that its config names.

  Raises:
    UserError: nothing lies there, or no such model, or a format that could
      run code when loaded (pickle), which is refused.
  """
  place = places.find(path, _fits)
  if place.files[0].name == adapters.FILE:
    return _with_adapter(adapters.read(place.folder), base)
  if base is not None:
    raise UserError(f"{path}: is no adapter, which base={base} would be for")
  reader = _reader(place.path, place.files)
  if place.files[0].suffix == ".npz":
    # The file, not its folder, says what lies beside.
    place = dataclasses.replace(place, path=place.files[0])
  config = _transformers_config(place.folder)
  for name, naming in _NAMINGS.items():
    whole = name == "huggingface" and huggingface_config.is_whole(config or {})
    if named := recognize(reader, naming, whole=whole):
      weights = _OPEN[name](place, named, config)
      notes = (*place.notes, *named.notes)
      return dataclasses.replace(weights, notes=notes)
  raise UserError(f"{reader.path}: {_unknown(reader, config)}")


def _with_adapter(adapter: adapters.Adapter, given: str | None) -> Weights:
  path, base = adapter.path, given or adapter.base
  if base is None:
    raise UserError(f"{path}: is an adapter (LoRA), and says of no weights")
  if (
    given is None and (path / base).exists()
  ):  # Beside it, or in a folder there.
    base = str(path / base)
  try:
    weights = open_weights(base)
  except UserError as error:
    raise UserError(
      f"{path}: is an adapter (LoRA) of {base!r}, which cannot be read "
      f"({error}); name the weights, big-siglip import --base=FOLDER"
    ) from error
  if weights.format != "huggingface":
    raise UserError(
      f"{path}: is an adapter (LoRA), and {base} has the names of "
      f"{weights.format}: must be of transformers"
    )
  towers = ("image", "text")[: 1 + sizes.has_text_tower(weights.model)]
  reader = adapters.add(weights.reader, towers, adapter)
  note = f"has the adapter of {path} added (W + {adapter.share:g} B A)"
  return dataclasses.replace(
    weights, reader=reader, notes=(*weights.notes, note)
  )


def _fits(files: Sequence[pathlib.Path]) -> bool:
  """Returns whether files hold a model, by the names of their arrays."""
  try:
    reader = _reader(files[0], files)
    return any(recognize(reader, naming) for naming in _NAMINGS.values())
  except UserError:
    return False


def _reader(path: pathlib.Path, files: Sequence[pathlib.Path]) -> Reader:
  if files[0].suffix == ".npz":
    return npz.Npz(files[0])
  if files[0].is_dir() and files[0].suffix != ".safetensors":
    return zarr.Zarr(files[0])
  return tensors.Safetensors(path, files)


def _transformers_config(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns the config.json of transformers, if there is one."""
  file = folder / "config.json"
  if not file.is_file():
    return None
  config = tensors.read_json(file)
  return config if config.keys() & {"model_type", "vision_config"} else None


def _unknown(reader: Reader, config: Mapping[str, Any] | None) -> str:
  """Returns what to say of arrays that have no names of SigLIP's."""
  kind = (config or {}).get("model_type")
  if any(re.search(r"\btoken_embedding\b", key) for key in reader.shapes()):
    return "holds a text tower alone; must hold an image tower"
  what = f" (model_type={kind!r})" if kind else ""
  shown = ", ".join(list(reader.shapes())[:_MOST_NAMES]) or "no array"
  signs = ", ...".join(naming.image_sign for naming in _NAMINGS.values())
  return (
    f"holds no SigLIP model{what}: no array is called ...{signs}; the first "
    f"are {shown}"
  )


def _open_clip(place: places.Place, named: Named, config: Any) -> Weights:
  known = sidecar.read(place.path)
  model = open_clip.infer_config(
    named.shapes(), named.path, named.towers, known.get("num_heads")
  )
  known = known or read_open_clip(place.folder)
  _set_image_size(model, known, named.path)
  rules = open_clip.rules(model)
  return Weights("open_clip", named, model, rules, place.folder, known)


def _huggingface(place: places.Place, named: Named, config: Any) -> Weights:
  known = sidecar.read(place.path)
  shapes = named.shapes()
  pooled = any(key.startswith("vision_model.head.") for key in shapes)
  what = named.towers, "map" if pooled or "text" in named.towers else "none"
  if config is not None:
    file = str(place.folder / "config.json")
    model = huggingface_config.model_config(config, file, *what)
  else:
    model = huggingface_config.infer_config(shapes, named.path, *what)
    _set_image_size(model, known, named.path)
  rules = huggingface.rules(model)
  return Weights("huggingface", named, model, rules, place.folder, known)


def _big_vision(place: places.Place, named: Named, config: Any) -> Weights:
  reader: Reader = named
  if big_vision.SummedPositions.EXTRA in named.shapes():
    reader = big_vision.SummedPositions(named)
  shapes = reader.shapes()
  model = big_vision.infer_config(shapes, named.path, named.towers)
  rules = big_vision.rules(model, big_vision.stacked_towers(shapes))
  known = sidecar.read(place.path)
  _set_image_size(model, known, named.path)
  return Weights("big_vision", reader, model, rules, None, known)


_OPEN = {
  "open_clip": _open_clip,
  "open_clip_naflex": _open_clip,
  "huggingface": _huggingface,
  "big_vision": _big_vision,
}


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
