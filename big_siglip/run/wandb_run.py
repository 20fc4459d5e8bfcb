"""A run at Weights & Biases, which goes on where it was stopped."""

from collections.abc import Mapping
import json
import secrets
from typing import Any

from etils import epath
import numpy as np

from big_siglip import extras
from big_siglip.errors import UserError
from big_siglip.run.workdir import write_whole

FILE = "wandb.json"  # In the run's folder: by which name wandb knows it.


class WandbRun:
  """The run of a folder; only process 0 should hold one."""

  def __init__(self, folder: epath.Path, config: Mapping[str, Any]):
    """Starts it, or goes on with the one that was started before.

    Args:
      folder: of the run.
      config: the whole of it, as JSON has it.

    Raises:
      UserError: wandb is not installed, or does not start.
    """
    with extras.needed_by("config.wandb=True"):
      import wandb
    own = config["logging"]
    try:
      self._run = wandb.init(
        project=own["project"],
        entity=own["entity"],
        name=own["name"] or folder.name,
        tags=own["tags"],
        dir=str(folder),
        config=dict(config),
        resume="allow",
        id=find_id(folder),
      )
    except wandb.Error as error:
      reason = str(error).strip().splitlines()[0]
      raise UserError(f"config.wandb=True: wandb says: {reason}") from error
    self._make_image = wandb.Image

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds numbers, unless the run had come further before it was killed."""
    if step >= self._run.step:  # Those it has are the same, bit for bit.
      self._run.log(dict(metrics), step=step)

  def draw(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Adds pictures, uint8 [H, W, 3] each."""
    if step >= self._run.step:
      images = {k: self._make_image(v) for k, v in pictures.items()}
      self._run.log(images, step=step)

  def close(self) -> None:
    """Sends what is left."""
    self._run.finish()


def find_id(folder: epath.Path) -> str:
  """Returns the id of the folder's run; makes one and keeps it.

  Raises:
    UserError: the file that keeps it is damaged.
  """
  file = folder / FILE
  try:
    return str(json.loads(file.read_text())["id"])
  except FileNotFoundError:
    pass
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file}: damaged; without it a new run begins") from error
  # Of a run that began when folders gave their names.
  was = folder.name if (folder / "wandb").is_dir() else None
  own = was or secrets.token_hex(4)
  write_whole(file, json.dumps({"id": own}) + "\n")
  return own
