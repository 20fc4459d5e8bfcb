"""Names of classes; `class_files` reads them."""

from collections.abc import Sequence
import re
from typing import NamedTuple


class ClassNames(NamedTuple):
  """Classes in the order of a file.

  Attributes:
    names: of each class, at least one.
    labels: further columns, such as numbers or ids: what each class is called
      in data, a text that no other class has. None: order alone tells.
  """

  names: tuple[tuple[str, ...], ...]
  labels: tuple[tuple[str, ...], ...] = ()


def merged(classes: ClassNames) -> tuple[ClassNames, list[str]]:
  """Returns the classes without labels, those of the same names as one.

  Returns:
    The classes, and the names that several had.
  """
  numbers, several = same_names(classes.names)
  first = {number: i for i, number in reversed(list(enumerate(numbers)))}
  names = tuple(classes.names[first[number]] for number in sorted(first))
  return ClassNames(names), several


def same_names(
  names: Sequence[tuple[str, ...]],
) -> tuple[list[int], list[str]]:
  """Returns a number for each class, equal for equal names, and these names.

  Prompts of equal names are equal, so that nothing could tell the classes
  apart. Capitals make no difference.
  """
  numbers: dict[frozenset[str], int] = {}
  found, several = [], []
  for own in names:
    key = frozenset(map(normal, own))
    if key in numbers:
      several.append(own[0])
    found.append(numbers.setdefault(key, len(numbers)))
  return found, several


def normal(name: str) -> str:
  """Returns a name as others may spell it: case, spaces and lines aside."""
  name = " ".join(re.split(r"[\s_-]+", name.casefold().strip()))
  return str(int(name)) if is_number(name) else name


def is_number(text: str) -> bool:
  """Returns whether a label is a number, from 0 on."""
  return text.isascii() and text.isdecimal() and len(text) < 19
