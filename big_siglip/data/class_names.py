"""Names of classes; `class_files` reads them."""

from collections.abc import Collection, Sequence
import re
from typing import NamedTuple

from big_siglip.errors import UserError

_NUMBER = re.compile(r"[0-9]{1,18}(\.0+)?")


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
    names, _, several = merge_same(names)
  seen = set()
  for own in names:
    if own[0] in seen:
      raise UserError(f"{where}: {own[0]!r} stands there twice")
    seen.add(own[0])
  return names, several


def merge_same(
  names: Sequence[tuple[str, ...]],
) -> tuple[tuple[tuple[str, ...], ...], list[int], list[str]]:
  """Makes one class of those of equal names.

  Their prompts are equal, so that nothing could tell them apart. Capitals make
  no difference.

  Args:
    names: of each class.

  Returns:
    The names that are left, each as it is first written; which of them each
    class is; and the names that several had.
  """
  numbers: dict[frozenset[str], int] = {}
  kept, found, several = [], [], []
  for own in names:
    key = frozenset(map(normal, own))
    if key in numbers:
      several.append(own[0])
    else:
      numbers[key] = len(kept)
      kept.append(own)
    found.append(numbers[key])
  return tuple(kept), found, several


def sort_labels(labels: Collection[str]) -> tuple[str, ...]:
  """Returns labels in order: 2 before 10 where all of them are numbers."""
  if all(map(is_number, labels)):
    return tuple(sorted(labels, key=lambda label: (to_number(label), label)))
  return tuple(sorted(labels))


def normal(name: str) -> str:
  """Returns a name as others may spell it: case, spaces and lines aside."""
  name = " ".join(re.split(r"[\s_-]+", name.casefold().strip()))
  return str(to_number(name)) if is_number(name) else name


def is_number(text: str) -> bool:
  """Returns whether a label is a whole number, from 0 on: 7, 07 or 7.0."""
  return bool(_NUMBER.fullmatch(text))


def to_number(text: str) -> int:
  """Returns the number that a label is; pandas writes 7 as 7.0."""
  return int(text.partition(".")[0])
