"""The project's own data sets: their names, and where they lie."""

import os

NAMES = ("digits", "scenes", "scenes/COUNT")


def default_data_dir() -> str:
  """Returns $BIG_SIGLIP_DATA, or ~/.cache/big_siglip where it is not set."""
  folder = os.environ.get("BIG_SIGLIP_DATA") or "~/.cache/big_siglip"
  return os.path.expanduser(folder)


def is_known(name: str) -> bool:
  """Whether `name` is a data set of the project's own."""
  kind, _, count = name.partition("/")
  return name in ("digits", "scenes") or (
    kind == "scenes" and count.isdecimal() and int(count) > 0
  )
