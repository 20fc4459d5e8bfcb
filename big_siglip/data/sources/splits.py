"""Which files of a data set are for training and which for testing.

Read from their names: train-00000-of-00002.parquet, imagenet-val-000.tar.
"""

from collections.abc import Sequence
import re

from big_siglip.errors import UserError

# How people call a split, and what it is called here.
_WORDS = {
  "train": "train",
  "training": "train",
  "val": "val",
  "valid": "val",
  "validation": "val",
  "dev": "val",
  "test": "test",
  "testing": "test",
}
_IN_NAME = re.compile(
  rf"(?:^|[-_.])({'|'.join(sorted(_WORDS, key=len, reverse=True))})"
  r"(?=[-_.0-9]|$)",
  re.IGNORECASE,
)


def canonical(word: str) -> str:
  """Returns "val" for "validation", and so on; other words as they are."""
  return _WORDS.get(word.lower(), word)


def is_split(word: str) -> bool:
  """Whether a folder of this name holds a split."""
  return word.lower() in (*_WORDS, "restval")  # Karpathy's, of COCO.


def split_in(name: str) -> str | None:
  """Returns the split that a file's name, or that of its folder, speaks of."""
  folder, _, base = name.rpartition("/")
  if found := _IN_NAME.findall(base):
    return _WORDS[found[0].lower()]
  return _WORDS.get(folder.rpartition("/")[-1].lower())


def choose_files(
  files: Sequence[str], split: str, path: str, what: str
) -> list[str]:
  """Returns the files of a split.

  Files whose names speak of different splits are not one data set: they are
  only taken together where `path` joins them by "::".

  Args:
    files: of the data set.
    split: "all", or what the files' names say.
    path: `config.data.path`.
    what: messages call the files.

  Raises:
    UserError: there is no such split, or it must be chosen.
  """
  found: dict[str | None, list[str]] = {}
  for file in files:
    found.setdefault(split_in(file), []).append(file)
  named = sorted(name for name in found if name)
  field = f"config.data.split={split!r}"
  if split == "all":
    if len(found) > 1 and named and "::" not in path:
      counts = ", ".join(f"{n} ({len(found[n])} files)" for n in named)
      raise UserError(
        f"{field}: must be one of {', '.join(named)}: the {what} {path} hold"
        f" {counts}, which are not one set (A::B in config.data.path joins two)"
      )
    return list(files)
  if canonical(split) in found:
    return found[canonical(split)]
  if named:
    raise UserError(
      f"{field}: must be one of all, {', '.join(named)}, as the names of the"
      f" {what} {path} say"
    )
  raise UserError(
    f"{field}: must be all for {what}; another part of the data is another"
    " config.data.path"
  )
