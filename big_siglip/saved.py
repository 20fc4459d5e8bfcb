"""A trained model, found again: a run's folder -> config and parameters."""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip import build, sharding, workdir
from big_siglip.checkpoint import restore_params, save_params
from big_siglip.errors import UserError
from big_siglip.models import make_model


def find(path: str) -> tuple[epath.Path, epath.Path]:
  """Returns the run's folder and that of one of its checkpoints.

  Args:
    path: the run's folder (its newest checkpoint is taken), or one checkpoint,
      `RUN/checkpoints/STEP`.

  Raises:
    UserError: no run or no checkpoint lies there.
  """
  folder = epath.Path(path)
  if "://" not in path:
    folder = folder.expanduser().resolve()
  if folder.name.isdecimal():
    run, checkpoint = folder.parent.parent, folder
    if not checkpoint.is_dir():
      raise UserError(f"--checkpoint={path}: no such checkpoint")
    return run, checkpoint
  checkpoints = folder / "checkpoints"
  steps = []
  if checkpoints.is_dir():
    names = [child.name for child in checkpoints.iterdir()]
    steps = sorted(int(name) for name in names if name.isdecimal())
  if not steps:
    raise UserError(f"--checkpoint={path}: no run with a checkpoint lies here")
  return folder, checkpoints / str(steps[-1])


def is_run(path: str) -> bool:
  """Returns whether `find` would look for a run here, not for other weights."""
  folder = epath.Path(path)
  folder = folder.parent.parent if folder.name.isdecimal() else folder
  return (folder / "checkpoints").is_dir()


def load_config(run: epath.Path) -> ConfigDict:
  """Returns a run's config, unlocked, with the tokenizer that lies beside."""
  config = ConfigDict(workdir.read_config(run))
  kept = run / workdir.TOKENIZER
  if kept.exists():
    config.data.tokenizer = str(kept)
  return config


def save_model(
  folder: epath.Path, params: Any, model: Any, data: Mapping[str, Any]
) -> None:
  """Writes parameters and preprocessing as a run's folder, at step 0.

  Args:
    folder: must not hold a run yet.
    params: the parameters.
    model: `config.model`.
    data: the preprocessing: tokenizer, lowercase, pad_id, resize.

  Raises:
    UserError: the folder holds a run, or cannot be written.
  """
  if (folder / "config.json").exists():
    raise UserError(f"{folder}: holds a run already; take another folder")
  checkpoint = folder / "checkpoints" / "0"
  config = ConfigDict(
    {
      "model": model,
      "data": {**data, "crop_min_area": 1.0, "flip": False},
      "evals": {},
    }
  )
  try:
    checkpoint.mkdir(parents=True, exist_ok=True)
    workdir.keep_tokenizer(folder, data["tokenizer"])
  except OSError as error:
    raise UserError(f"{folder}: not writable ({error.strerror})") from error
  save_params(checkpoint, params)
  text = json.dumps(workdir.as_json(config), indent=2) + "\n"
  workdir.write_whole(folder / "config.json", text)


def load_params(checkpoint: epath.Path, config: ConfigDict, mesh: Mesh) -> Any:
  """Returns the parameters of a checkpoint, laid out on the mesh.

  Raises:
    UserError: the checkpoint is not one of this config's model.
  """
  abstract = build.abstract_params(make_model(config.model), config)
  shardings = sharding.state_sharding(abstract, mesh)
  return restore_params(
    checkpoint,
    jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      shardings,
    ),
  )
