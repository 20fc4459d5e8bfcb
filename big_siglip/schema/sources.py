"""Names of data sets: the project's own, and formats."""

# These two may have a number of training examples.
COUNTED = ("scenes", "scenes_wide")
OWN = ("digits", *COUNTED)
NAMES = (
  *OWN,
  *(f"{name}/COUNT" for name in COUNTED),
  "folder",
  "tfds",
  "tfds:NAME",
  "arrayrecord",
  "tar",
  "parquet",
  "embeddings",
)


def is_own(name: str) -> bool:
  """Returns whether `name` is a data set of the project's own."""
  kind, _, count = name.partition("/")
  return name in OWN or (
    kind in COUNTED and count.isdecimal() and int(count) > 0
  )


def mistake(name: str) -> str | None:
  """Returns the rule that a name breaks, or None."""
  is_format = name in NAMES and not name.endswith(("/COUNT", ":NAME"))
  if is_own(name) or is_format or name.startswith("tfds:"):
    return None
  return f"must be one of {', '.join(NAMES)}"
