"""Where the project's own data sets lie."""

import os


def default_data_dir() -> str:
  """Returns $BIG_SIGLIP_DATA, or ~/.cache/big_siglip where it is not set."""
  folder = os.environ.get("BIG_SIGLIP_DATA") or "~/.cache/big_siglip"
  return os.path.expanduser(folder)
