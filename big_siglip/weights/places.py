"""From what a user names to the files that hold the weights."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import re

from big_siglip.errors import UserError
from big_siglip.weights import tensors, zarr

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")  # Never loaded.
_INDEX = re.compile(r"(.+\.safetensors)\.index(?:\.[\w-]+)?\.json")
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_REPOSITORY = re.compile(
  r"(?:https?://(?:huggingface\.co|hf\.co)/|hf-hub:|hf://)?"
  r"([\w.-]+/[\w.-]+)"
  r"(?:/(?:(?:blob|resolve|tree)/[\w.-]+/?)?([\w./-]+\.(?:safetensors|npz))?)?"
)
_FIRST = "model.safetensors"  # Before all others, as in transformers.
# How the name of a file ends that keeps terms of the loss beside a model.
TERMS = "terms.safetensors"
_MOST_NAMES = 5  # Of files in a line.


@dataclasses.dataclass(frozen=True)
class Place:
  """Where weights lie.

  Attributes:
    path: what messages call it.
    folder: what lies beside: config, tokenizer, preprocessing.
    files: of one model; or one folder, see `zarr`.
    notes: a line for each choice that was made.
  """

  path: pathlib.Path
  folder: pathlib.Path
  files: tuple[pathlib.Path, ...]
  notes: tuple[str, ...] = ()


def find(path: str, fits: Callable[[Sequence[pathlib.Path]], bool]) -> Place:
  """Returns the files that hold a model's weights.

  Args:
    path: a file, a folder, or the id of a repository on the Hugging Face hub,
      perhaps with the name of a file in it.
    fits: whether some safetensors files hold a model; asked where a folder has
      several.

  Raises:
    UserError: nothing lies there, or several models, or pickled code.
  """
  place = pathlib.Path(path).expanduser()
  if checkpoint := zarr.find(place):
    return Place(checkpoint, checkpoint, (checkpoint,))
  if not place.exists():
    found = _REPOSITORY.fullmatch(path)
    if not found:
      raise UserError(f"{path}: no such file or folder")
    place = _download(path, *found.groups())
  if place.is_dir():
    return _in_folder(place, fits)
  folder = place.parent
  _check_kind(place)
  if _INDEX.fullmatch(place.name):
    return Place(place, folder, _of_index(place))
  shard = _SHARD.fullmatch(place.name)
  if shard and int(shard[3]) > 1:
    files = _of_shards(folder, shard)
    note = f"is read with the {len(files) - 1} other parts of {shard[1]}"
    return Place(place, folder, files, (note,))
  return Place(place, folder, (place,))


def _check_kind(file: pathlib.Path) -> None:
  if file.suffix == ".safetensors":  # Its header may begin with any byte.
    return
  with file.open("rb") as stream:
    start = stream.read(1)
  if file.suffix in PICKLED or start == b"\x80":
    raise UserError(
      f"{file}: may hold pickled code, which is never loaded; convert it to "
      "safetensors where it comes from"
    )
  if file.suffix != ".npz" and not _INDEX.fullmatch(file.name):
    raise UserError(f"{file}: must be .safetensors, .npz or a folder")


def _in_folder(
  folder: pathlib.Path, fits: Callable[[Sequence[pathlib.Path]], bool]
) -> Place:
  models = _models(folder)
  if not models:
    raise UserError(f"{folder}: holds no run and no {_what_else(folder)}")
  names = list(models)
  if len(models) == 1:
    return Place(folder, folder, models[names[0]]())
  fitting = [name for name in names if fits(models[name]())]
  if _FIRST in fitting:
    fitting = [_FIRST]
  if len(fitting) != 1:
    which = fitting or names
    shown = ", ".join(which[:_MOST_NAMES])
    more = f" and {len(which) - _MOST_NAMES} more" * (len(which) > _MOST_NAMES)
    whose = "models of SigLIP" if fitting else "files, none of a SigLIP model"
    raise UserError(
      f"{folder}: holds {len(which)} {whose} ({shown}{more}); name one, such "
      f"as {folder / which[0]}"
    )
  (chosen,) = fitting
  others = ", ".join([name for name in names if name != chosen][:_MOST_NAMES])
  note = f"{chosen} is read, and not {others}"
  return Place(folder, folder, models[chosen](), (note,))


def _models(
  folder: pathlib.Path,
) -> Mapping[str, Callable[[], tuple[pathlib.Path, ...]]]:
  """Returns the files of each model in a folder, by its name."""
  models: dict[str, Callable[[], tuple[pathlib.Path, ...]]] = {}
  parts: set[str] = set()
  for file in sorted(folder.glob("*.json")):
    if index := _INDEX.fullmatch(file.name):
      models[index[1]] = lambda file=file: _of_index(file)
      with contextlib.suppress(UserError):  # Raised if it is taken.
        parts |= {name for name in _index_names(file) if name != index[1]}
  files = sorted(folder.glob("*.safetensors"))
  files = [file for file in files if not file.name.endswith(TERMS)]
  for file in files or sorted(folder.glob("*.npz")):
    shard = _SHARD.fullmatch(file.name)
    if file.name in parts:
      continue
    if shard:
      models[f"{shard[1]}.safetensors"] = lambda shard=shard: _of_shards(
        folder, shard
      )
    else:  # Before an index of the same name, as in transformers.
      models[file.name] = lambda file=file: (file,)
  return models


def _index_names(index: pathlib.Path) -> list[str]:
  try:
    names = tensors.read_json(index)["weight_map"].values()
    return sorted({str(pathlib.PurePath(name)) for name in names})
  except (KeyError, AttributeError, TypeError) as error:
    raise UserError(f"{index}: is no index of safetensors files") from error


def _of_index(index: pathlib.Path) -> tuple[pathlib.Path, ...]:
  files = [index.parent / name for name in _index_names(index)]
  for file in files:
    if file.parent != index.parent or not file.is_file():
      raise UserError(f"{index}: names {file.name}, which is missing")
  return tuple(files)


def _of_shards(folder: pathlib.Path, shard: re.Match) -> tuple:
  """Returns all files of a model that is cut into parts without an index."""
  stem, count, width = shard[1], int(shard[3]), len(shard[3])
  files = [
    folder / f"{stem}-{i:0{width}}-of-{shard[3]}.safetensors"
    for i in range(1, min(count, 100_000) + 1)
  ]
  for file in files:
    if not file.is_file():
      raise UserError(
        f"{folder}: {file.name} is missing, one of {count} parts of a model"
      )
  return tuple(files)


def _what_else(folder: pathlib.Path) -> str:
  """Returns "safetensors file", and what a folder without one holds instead."""
  if pickled := [f.name for f in folder.iterdir() if f.suffix in PICKLED]:
    which = sorted(pickled)[0]
    return f"safetensors file, but {which}, pickled code, which is never loaded"
  below = sorted(folder.glob("*/*.safetensors")) or sorted(
    folder.glob("snapshots/*/*.safetensors")
  )
  if below:
    return f"safetensors file, but its folder does: name {below[0].parent}"
  return "safetensors file"


def _download(path: str, repository: str, file: str | None) -> pathlib.Path:
  import huggingface_hub  # Imported late: it takes a second.

  try:
    patterns = ["*.json", "*.model", file or "*.safetensors"]
    folder = huggingface_hub.snapshot_download(
      repository, allow_patterns=patterns
    )
  except Exception as error:  # The network, the hub and the disk all have many.
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      f"{path}: neither a path nor a repository that can be fetched "
      f"({type(error).__name__}: {reason})"
    ) from error
  place = pathlib.Path(folder) / (file or "")
  if not place.exists():
    held = sorted(f.name for f in pathlib.Path(folder).iterdir())
    raise UserError(
      f"{path}: {repository} has no {file}; it has {', '.join(held)[:200]}"
    )
  return place
