"""A trained model, found again: a run's folder -> config and parameters."""

from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip import build, sharding, workdir
from big_siglip.checkpoint import restore_params
from big_siglip.errors import UserError
from big_siglip.models import SigLIP


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


def load_config(run: epath.Path) -> ConfigDict:
  """Returns the config of a run, unlocked."""
  return ConfigDict(workdir.read_config(run))


def load_params(checkpoint: epath.Path, config: ConfigDict, mesh: Mesh) -> Any:
  """Returns the parameters of a checkpoint, laid out on the mesh.

  Raises:
    UserError: the checkpoint is not one of this config's model.
  """
  abstract = build.abstract_params(SigLIP(config.model), config)
  shardings = sharding.state_sharding(abstract, mesh)
  return restore_params(
    checkpoint,
    jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      shardings,
    ),
  )
