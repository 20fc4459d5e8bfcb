"""The project's own data sets: their names, and where they lie."""

import os

# "scenes" and "scenes_wide" may have a number of training examples.
COUNTED = ("scenes", "scenes_wide")
NAMES = ("digits", *COUNTED, *(f"{name}/COUNT" for name in COUNTED))


def default_data_dir() -> str:
  """Returns $BIG_SIGLIP_DATA, or ~/.cache/big_siglip where it is not set."""
  folder = os.environ.get("BIG_SIGLIP_DATA") or "~/.cache/big_siglip"
  return os.path.expanduser(folder)


def is_known(name: str) -> bool:
  """Whether `name` is a data set of the project's own."""
  kind, _, count = name.partition("/")
  return name in ("digits", *COUNTED) or (
    kind in COUNTED and count.isdecimal() and int(count) > 0
  )
