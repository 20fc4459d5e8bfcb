"""Where a run lies that a path names."""

import os

from etils import epath

from big_siglip.run import workdir

CHECKPOINTS = "checkpoints"  # The folder of a run's steps.


def find_run(path: str) -> tuple[epath.Path, epath.Path | None] | None:
  """Returns a run's folder, and the checkpoint that a path names itself.

  A run may be called anything: 7, 2026.11.28, even checkpoints. Only a folder
  of digits in one called checkpoints, beside a run's config, is a checkpoint.
  Links are followed where the path as it is written tells nothing.
  """
  try:
    places = [workdir.absolute(path)]
  except KeyError:  # Of an address (https://...) that names no files.
    return None
  if "://" not in path:
    places.append(epath.Path(os.path.realpath(places[0])))
  for folder in places:
    above = folder.parent
    if (folder / CHECKPOINTS).is_dir() and (
      workdir.saved_steps(folder) or not _holds_weights(folder)
    ):
      return folder, None
    if _holds_weights(folder):
      continue
    if folder.name == CHECKPOINTS and workdir.saved_steps(above):
      return above, None
    is_step = folder.name.isdecimal() and above.name == CHECKPOINTS
    if is_step and above.is_dir():
      return above.parent, folder
  return None


def _holds_weights(folder: epath.Path) -> bool:
  """Returns whether a folder is one of transformers or the like."""
  return any(folder.glob("*.safetensors"))
