"""The classes of a data set: its labels, and what a file calls them."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from absl import logging

from big_siglip.data import class_files
from big_siglip.data.class_names import (
  ClassNames,
  is_number,
  merge_same,
  normal,
  to_number,
)
from big_siglip.errors import UserError


class Classes(NamedTuple):
  """The classes that a classifier chooses from.

  Attributes:
    names: of each class, the names that its prompts use, at least one.
    of_label: {label: class}; a label is a name or number of the data set's, or
      what the file calls a class.
    of_index: {label of an example: class}. Images of other labels are left out.
  """

  names: tuple[tuple[str, ...], ...]
  of_label: Mapping[str | int, int]
  of_index: Mapping[int, int]


def read_classes(
  file: str | None,
  labels: Sequence[str] | None,
  numbers: Sequence[int] = (),
) -> Classes:
  """Returns the classes of a data set; a log line says what was matched.

  A file's classes belong to labels by what both call them, be it names or
  numbers. Where they have nothing in common, they do in their order: that of
  the data set's own list of labels, or of the numbers.

  Args:
    file: see `class_files.read`; None for the labels themselves.
    labels: the data set's, in order; None if they are not known.
    numbers: the labels where these are numbers without names, ascending. If the
      data set has neither, the file alone says what the classes are, and an
      answers file which image has which.

  Raises:
    UserError: the file cannot be read, or does not match the labels.
  """
  texts = list(labels) if labels else [str(number) for number in numbers]
  indices = list(range(len(texts))) if labels else list(numbers)
  if file is None:
    if not texts:
      raise UserError(
        "config.evals: classes_file=None: must be given with answers_file for "
        "a data set without labels"
      )
    owners = dict(enumerate(range(len(texts))))
    return _classes(tuple((text,) for text in texts), texts, indices, owners)
  where = f"config.evals: classes_file={file!r}"
  content = class_files.read(file, where)
  if not texts:
    return Classes(content.names, _of_file(content), {})
  owners, how = _match(content, texts, where)
  _tell(file, content, texts, owners, how)
  return _classes(content.names, texts, indices, owners)


def merge_equal(classes: Classes) -> Classes:
  """Returns the classes with those of the same names as one, and says which."""
  names, merged, several = merge_same(classes.names)
  if not several:
    return classes
  logging.warning(
    "%d classes have the names of others, which nothing could tell apart, and "
    "count as the same: %s",
    len(several),
    ", ".join(several[:5]) + (" ..." if len(several) > 5 else ""),
  )
  return Classes(
    names,
    {label: merged[i] for label, i in classes.of_label.items()},
    {index: merged[i] for index, i in classes.of_index.items()},
  )


def _classes(names, texts, indices, owners: Mapping[int, int]) -> Classes:
  """Joins classes and labels.

  Args:
    names: of the classes.
    texts: the labels.
    indices: what examples have of them.
    owners: {place in `texts`: class}.
  """
  of_index = {indices[place]: owner for place, owner in owners.items()}
  # Files write numbers as the data do, where these are the labels.
  numbered = all(map(is_number, texts))
  of_label: dict[str | int, int] = {}
  for place, owner in owners.items():
    of_label[texts[place]] = owner
    of_label[to_number(texts[place]) if numbered else indices[place]] = owner
  return Classes(tuple(names), of_label, of_index)


def _of_file(content: ClassNames) -> dict[str | int, int]:
  """Returns the class of all that a file calls one."""
  of_label: dict[str | int, int] = dict(
    zip(range(len(content.names)), range(len(content.names)), strict=True)
  )
  for i, own in reversed(list(enumerate(content.names))):
    of_label[own[0]] = i
  for column in content.labels:
    for i, label in enumerate(column):
      of_label[to_number(label) if is_number(label) else label] = i
      of_label[label] = i
  return of_label


def _match(
  content: ClassNames, texts: Sequence[str], where: str
) -> tuple[dict[int, int], str]:
  """Returns {place of a label: class}, and how they were matched."""
  for same in (str, normal):
    for column in (*_alone(content.labels), content.names):
      owners = _by_name(column, texts, same)
      if owners:
        numbered = all(map(is_number, texts))
        return owners, "by number" if numbered else "by name"
  if all(map(is_number, texts)):
    return _in_order_of_numbers(content, texts, where)
  for column in content.labels:
    if all(map(is_number, column)):
      places = list(map(to_number, column))
      first = _first_number(places, len(texts), where)
      owners = {place - first: i for i, place in enumerate(places)}
      _check_order(content, texts, owners, where)
      return owners, f"by number, {first} being the first label"
  if content.labels or _shares_a_name(content, texts):
    raise UserError(f"{where}: {_strangers(content, texts)}")
  if len(content.names) != len(texts):
    raise UserError(
      f"{where}: must have a name for each of the {len(texts)} labels of the "
      f"data set, in order; it has {len(content.names)} (a JSON object, "
      "{label: name}, may leave some out)"
    )
  owners = dict(enumerate(range(len(texts))))
  _check_order(content, texts, owners, where)
  return owners, "in the order of the labels"


def _alone(columns):
  return [[(label,) for label in column] for column in columns]


def _by_name(
  column: Sequence[Sequence[str]],
  texts: Sequence[str],
  same: Callable[[str], str],
) -> dict[int, int] | None:
  """Returns {place of a label: class} if each class is a label.

  Labels may be without a class, and their images are left out. Numbers may also
  be without an image: data rarely have all of them in every part.
  """
  classes: dict[str, int] = {}
  for number, names in enumerate(column):
    for name in map(same, names):
      if classes.setdefault(name, number) != number:
        return None
  wanted = [same(text) for text in texts]
  owners = {
    place: classes[label]
    for place, label in enumerate(wanted)
    if label in classes
  }
  if len(set(wanted)) < len(wanted) or not owners:
    return None
  whole = len(set(owners.values())) == len(column)
  whole |= len(owners) == len(wanted) and all(map(is_number, texts))
  return owners if whole else None


def _in_order_of_numbers(content, texts, where) -> tuple[dict[int, int], str]:
  """Returns what names without numbers mean for labels that are numbers."""
  numbers, count = list(map(to_number, texts)), len(content.names)
  if any(all(map(is_number, column)) for column in content.labels):
    raise UserError(f"{where}: {_strangers(content, texts)}")
  if count == len(numbers):
    return dict(enumerate(range(count))), "in the order of the numbers"
  if count < len(numbers):
    raise UserError(
      f"{where}: must have a name for each of the {len(numbers)} labels of the "
      f"data set, {numbers[0]} ... {numbers[-1]}; it has {count} (a JSON "
      "object, {label: name}, may leave some out)"
    )
  first = _first_number(numbers, count, where)
  owners = {place: number - first for place, number in enumerate(numbers)}
  return owners, f"by number, the first name being that of {first}"


def _first_number(numbers: Sequence[int], count: int, where: str) -> int:
  """Returns whether 0 or 1 stands for the first of `count` things."""
  least, most = min(numbers), max(numbers)
  if least == 0 and most < count:
    return 0
  if least > 0 and most == count:
    return 1
  if most < count:
    raise UserError(
      f"{where}: the numbers {least} ... {most} of {count}: is the first 0 or "
      "1? A JSON object, {label: name}, says it"
    )
  raise UserError(
    f"{where}: the numbers {least} ... {most} do not belong to {count} in order"
  )


def _check_order(content, texts, owners: Mapping[int, int], where) -> None:
  """Refuses an order in which a name that is a label stands for another."""
  places = {normal(text): place for place, text in enumerate(texts)}
  for place, owner in owners.items():
    name = content.names[owner][0]
    own = places.get(normal(name), place)
    if own != place:
      raise UserError(
        f"{where}: {name!r} would, in the order of the labels, name the label "
        f"{texts[place]!r}, and {texts[own]!r} is a label too; a JSON object, "
        "{label: name}, says which belong together"
      )


def _shares_a_name(content: ClassNames, texts: Sequence[str]) -> bool:
  """Returns whether a list of another length than the labels names some."""
  names = {normal(name) for own in content.names for name in own}
  several = len(content.names) != len(texts)
  return several and any(normal(text) in names for text in texts)


def _strangers(content: ClassNames, texts: Sequence[str]) -> str:
  """Returns what a file calls classes and the data set does not."""
  column = content.labels[0] if content.labels else _firsts(content)
  unknown = [label for label in column if label not in texts] or [column[0]]
  lacking = [text for text in texts if text not in column]
  lacks = f" it lacks {lacking[0]!r};" if 0 < len(lacking) < len(texts) else ""
  return (
    f"has {len(unknown)} labels that the data set does not have, the first "
    f"{unknown[0]!r};{lacks} the data set's are {texts[0]!r} ... {texts[-1]!r}"
  )


def _firsts(content: ClassNames) -> list[str]:
  return [own[0] for own in content.names]


def _tell(file, content, texts, owners: Mapping[int, int], how: str) -> None:
  """Says what was matched: a wrong match is seen in two examples of it."""
  ends = dict.fromkeys([min(owners), max(owners)])
  shown = " ... ".join(
    f"{texts[place]!r} is {content.names[owners[place]][0]!r}" for place in ends
  )
  rest = len(content.names) - len(set(owners.values()))
  logging.warning(
    "classes_file=%r: %d classes for %d labels, %s: %s%s",
    *(file, len(content.names), len(texts), how, shown),
    f"; {rest} classes have no image here" if rest else "",
  )
