"""Files that come with the package: the configs, and what they name.

They lie in configs/ of the repository, and in configs/ of the package where it
is installed.
"""

import pathlib

_PACKAGE = pathlib.Path(__file__).resolve().parent
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
CONFIGS = ROOT / "configs"


def find(path: str) -> pathlib.Path:
  """Returns a file that a user names, or that of the package in its place.

  Args:
    path: "~" is the home folder. One such as "configs/scenes.model" is the
      user's own where there is one, and else that of the package.
  """
  own = pathlib.Path(path).expanduser()
  if own.parts[:1] == ("configs",) and not own.exists():
    ours = ROOT / own
    return ours if ours.exists() else own
  return own
