"""Names of classes; `class_files` reads them."""

from collections.abc import Collection, Sequence
import re
from typing import NamedTuple

from big_siglip.errors import UserError


class ClassNames(NamedTuple):
  """Classes in the order of a file.

  Attributes:
    names: of each class, at least one.
    labels: further columns, such as numbers or ids: what each class is called
      in data, a text that no other class has. None: order alone tells.
  """

  names: tuple[tuple[str, ...], ...]
  labels: tuple[tuple[str, ...], ...] = ()


def distinct(
  classes: ClassNames, where: str
) -> tuple[tuple[tuple[str, ...], ...], list[str]]:
  """Returns the names of each class, to be asked for where no data say more.

  Classes of the same names that have labels of their own are one.

  Args:
    classes: as they were read.
    where: what messages call them.

  Returns:
    The names, and those that several classes had.

  Raises:
    UserError: a list names one twice, or two have the same first name.
  """
  names, several = classes.names, []
  if classes.labels:
    numbers, several = same_names(names)
    first = {number: i for i, number in reversed(list(enumerate(numbers)))}
    names = tuple(names[first[number]] for number in sorted(first))
  seen = set()
  for own in names:
    if own[0] in seen:
      raise UserError(f"{where}: {own[0]!r} stands there twice")
    seen.add(own[0])
  return names, several


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


def sort_labels(labels: Collection[str]) -> tuple[str, ...]:
  """Returns labels in order: 2 before 10 where all of them are numbers."""
  if all(map(is_number, labels)):
    return tuple(sorted(labels, key=lambda label: (int(label), label)))
  return tuple(sorted(labels))


def normal(name: str) -> str:
  """Returns a name as others may spell it: case, spaces and lines aside."""
  name = " ".join(re.split(r"[\s_-]+", name.casefold().strip()))
  return str(int(name)) if is_number(name) else name


def is_number(text: str) -> bool:
  """Returns whether a label is a number, from 0 on."""
  return text.isascii() and text.isdecimal() and len(text) < 19
