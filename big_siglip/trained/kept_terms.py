"""What an export keeps of the terms of the loss, in a file of our own.

Other projects' formats have no place for a decoder or for heads. On request
they lie beside the weights, where others overlook them: `terms.safetensors` in
an exported folder, `m.terms.safetensors` beside `m.npz`. Arrays have their
names in a checkpoint: `params/NAME/...`, and `carry/NAME/...` of what goes from
step to step, such as a teacher; NAME is that of a section of `config.terms`.
Blocks are stacked. The sections stand in the file's header, under "terms", as
JSON. What is written is float32, whole numbers too.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

from etils import epath
from flax import traverse_util
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import sharding
from big_siglip.checkpoint import read_item
from big_siglip.errors import UserError
from big_siglip.models import restack
from big_siglip.run import workdir
from big_siglip.weights.places import TERMS
from big_siglip.weights.tensors import (
  read_metadata,
  Safetensors,
  save_safetensors,
)

_SECTIONS, _PARAMS = "terms", "params"  # In the header; before names.


def file_of(place: pathlib.Path) -> pathlib.Path:
  """Returns where the terms lie, or would, of an exported folder or file."""
  return place / TERMS if place.is_dir() else place.with_suffix(f".{TERMS}")


def check(
  names: Sequence[str], checkpoint: epath.Path, config: ConfigDict
) -> None:
  """Checks that a run has the terms that an export is to keep.

  Args:
    names: of sections of `config.terms`.
    checkpoint: what `saved.open_model` found.
    config: its config.

  Raises:
    UserError: it has no such term.
  """
  has = config.get("terms", {})
  for name in names:
    if name not in has:
      raise UserError(
        f"--keep={name}: must be one of {', '.join(has)}, of config.terms"
        if has
        else f"--keep={name}: {checkpoint} has no config.terms to keep"
      )


def save(
  place: pathlib.Path,
  names: Sequence[str],
  checkpoint: epath.Path,
  config: ConfigDict,
  mesh: Mesh,
) -> pathlib.Path:
  """Writes terms beside an export, and returns the file.

  Args:
    place: the exported folder or file.
    names: of sections of `config.terms`; see `check`.
    checkpoint: of the run.
    config: of the run.
    mesh: where arrays are laid out that are read.
  """
  sections = workdir.as_json(config)["terms"]
  about = json.dumps({name: sections[name] for name in names})
  file = file_of(place)
  arrays = _of_run if (checkpoint / "params").is_dir() else _of_export
  save_safetensors(file, arrays(checkpoint, names, mesh), {_SECTIONS: about})
  return file


def _of_run(checkpoint: epath.Path, names: Sequence[str], mesh: Mesh):
  """Yields what `save_safetensors` writes of a run's terms."""
  averaged = (checkpoint / "ema").is_dir()  # Which is what is exported.
  items = {_PARAMS: "ema" if averaged else "params", "carry": "carry"}
  for start, item in items.items():
    if (checkpoint / item).is_dir():
      tree = read_item(checkpoint / item, mesh)
      own = {name: tree[name] for name in names if name in tree}
      for key, leaf in sharding.flatten({start: restack(own, True)}).items():
        yield key, leaf.shape, lambda leaf=leaf: np.asarray(leaf)


def _of_export(place: epath.Path, names: Sequence[str], mesh: Mesh):
  """Yields the same of terms that an export has kept already."""
  del mesh
  reader = Safetensors(file_of(pathlib.Path(place)))
  for key, shape in reader.shapes().items():
    if key.split("/")[1] in names:
      yield key, shape, lambda key=key: reader.read(key)


def sections(place: pathlib.Path) -> dict[str, Any]:
  """Returns the sections of terms that lie beside weights; {} if none do.

  Args:
    place: the folder, or the file, of the weights.

  Raises:
    UserError: the file is damaged.
  """
  file = file_of(place)
  if not file.is_file():
    return {}
  try:
    found = json.loads(read_metadata(file)[_SECTIONS])
    if all("kind" in section for section in found.values()):
      return found
  except (ValueError, KeyError, TypeError, AttributeError):
    pass
  raise UserError(f"{file}: does not say which terms it holds")


def restore(place: pathlib.Path, abstract: Mapping[str, Any]) -> Any:
  """Returns the parameters of terms that lie beside weights.

  Args:
    place: the folder, or the file, of the weights.
    abstract: shapes, dtypes and shardings by the terms' names, with stacked
      blocks.

  Raises:
    UserError: the file is damaged, or of another model.
  """
  reader = Safetensors(file_of(place))
  wanted = sharding.flatten({_PARAMS: abstract})
  starts = tuple(f"{_PARAMS}/{name}/" for name in abstract)
  found = {k: v for k, v in reader.shapes().items() if k.startswith(starts)}
  shapes = {key: tuple(leaf.shape) for key, leaf in wanted.items()}
  if found != shapes:
    differing = [
      key for key in sorted(found | shapes) if found.get(key) != shapes.get(key)
    ]
    raise UserError(
      f"{reader.path}: holds other parameters than its sections say: "
      + ", ".join(differing[:5])
    )
  leaves = {key: _read(reader, key, leaf) for key, leaf in wanted.items()}
  return traverse_util.unflatten_dict(leaves, sep="/")[_PARAMS]


def _read(reader: Safetensors, key: str, leaf: Any) -> jax.Array:
  array = reader.read(key)
  if not np.isfinite(array).all():
    raise UserError(f"{reader.path}: {key} holds numbers that are not finite")
  return jax.device_put(array.astype(leaf.dtype), leaf.sharding)


def told_left(config: ConfigDict, kept: Sequence[str]) -> str:
  """Returns what an export leaves out, by name; "" if it is nothing."""
  terms = config.get("terms", {})
  left = [name for name in terms if name not in kept]
  if not left:
    return ""
  shown = ", ".join(f"{name} ({terms[name].kind})" for name in left)
  return (
    f"terms of the loss are left out: {shown}; --keep={','.join(left)} writes "
    "them beside the model"
  )
