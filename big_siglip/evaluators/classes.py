"""What a zero-shot classifier asks, from files: classes, prompts, answers."""

from collections.abc import Mapping, Sequence
import json
import pathlib
import re
from typing import Any, NamedTuple

from big_siglip.data.cleaning import canonicalize
from big_siglip.data.sources import Example
from big_siglip.errors import raise_problems, UserError


class Classes(NamedTuple):
  """The classes that a classifier chooses from.

  Attributes:
    names: of each class, the names that its prompts use, at least one.
    of_label: {label: class}; a label is a name or number of the data set's, or
      a key of the file. Images of other labels are left out.
  """

  names: tuple[tuple[str, ...], ...]
  of_label: Mapping[str | int, int]


def read_classes(file: str | None, labels: Sequence[str] | None) -> Classes:
  """Returns the classes of a data set.

  Args:
    file: None for the labels themselves; a .txt file with a name a line, or a
      .json list of names, one for each label in order; or a .json object,
      {label: name}, that may leave out labels. In JSON a list of names in place
      of one gives a class several, whose prompts are averaged.
    labels: the data set's; None if it has none. Then the file alone says what
      the classes are, and an answers file which image has which.

  Raises:
    UserError: the file cannot be read, or does not match the labels.
  """
  if file is None:
    if not labels:
      raise UserError(
        "config.evals: classes_file=None: must be given with answers_file for "
        "a data set without labels"
      )
    return _in_order([(label,) for label in labels], labels)
  content = _read(file, "classes_file")
  if isinstance(content, Mapping):
    return _by_label(file, content, labels)
  names = [_names(file, entry) for entry in content]
  if labels and len(names) != len(labels):
    raise UserError(
      f"config.evals: classes_file={file!r}: must have a name for each of the "
      f"{len(labels)} labels of the data set, in order; it has {len(names)} (a "
      "JSON object, {label: name}, may leave some out)"
    )
  return _in_order(names, labels or [name[0] for name in names])


def _in_order(names, labels) -> Classes:
  of_label = {label: number for number, label in enumerate(labels)}
  of_label |= {number: number for number in range(len(names))}
  return Classes(tuple(names), of_label)


def _by_label(file, content, labels) -> Classes:
  names = tuple(_names(file, entry) for entry in content.values())
  of_label = {label: number for number, label in enumerate(content)}
  order = list(labels or content)
  unknown = [label for label in content if label not in order]
  if unknown:
    raise UserError(
      f"config.evals: classes_file={file!r}: has {len(unknown)} labels that "
      f"the data set does not have, the first {unknown[0]!r}; it has "
      f"{order[0]!r} ... {order[-1]!r}"
    )
  numbers = {
    number: of_label[label]
    for number, label in enumerate(order)
    if label in of_label
  }
  return Classes(names, {**of_label, **numbers})


def _names(file: str, entry: Any) -> tuple[str, ...]:
  names = (entry,) if isinstance(entry, str) else tuple(entry or ())
  if not names or not all(isinstance(n, str) and n.strip() for n in names):
    raise UserError(
      f"config.evals: classes_file={file!r}: {entry!r} must be a name or a "
      "list of names"
    )
  return names


def read_templates(
  templates: Sequence[str], file: str | None
) -> tuple[str, ...]:
  """Returns the prompt templates, checked.

  Args:
    templates: such as "a photo of the digit {}."; empty where a file is given.
    file: one a line, or a .json list.

  Raises:
    UserError: none or both are given, or a template has not exactly one "{}".
  """
  if file is None and (isinstance(templates, str) or not templates):
    raise UserError(
      f"config.evals: templates={templates!r}: must be a tuple of at least one "
      "(or set templates_file)"
    )
  if file is not None:
    if templates:
      raise UserError(
        f"config.evals: templates_file={file!r}: templates must be empty beside"
      )
    templates = _read(file, "templates_file")
  field = "templates" if file is None else f"templates_file={file!r}"
  raise_problems(
    [
      f"config.evals: {field} has {template!r}: must have '{{}}' exactly once"
      for template in templates
      if not isinstance(template, str) or template.count("{}") != 1
    ]
  )
  return tuple(templates)


def fill_templates(
  templates: Sequence[str],
  names: Sequence[Sequence[str]],
  canonical: bool = False,
) -> list[list[str]]:
  """Returns each class's prompts: every template with each of its names.

  Args:
    templates: with "{}" once each.
    names: of each class.
    canonical: lowercase without punctuation (`canonicalize`).
  """
  if canonical:
    templates = [
      canonicalize(template, keep_punctuation="{}") for template in templates
    ]
    names = [[canonicalize(n) for n in of_class] for of_class in names]
  return [
    [
      template.replace("{}", name)
      for name in of_class
      for template in templates
    ]
    for of_class in names
  ]


class Answers:
  """Which classes are right for an image: its label, or a file's.

  Attributes:
    width: the most that one image has.
  """

  def __init__(self, file: str | None, classes: Classes):
    """Reads the file, if there is one.

    Args:
      file: None to believe the labels. A .json object, {image's name: [labels]}
        (its last part without folders), or a list whose entry i belongs to the
        image whose name ends in the number i + 1, as ReaL's own file
        (arXiv:2006.07159). Labels are names or numbers of the data set's.
      classes: what the labels mean.

    Raises:
      UserError: the file cannot be read or names an unknown label.
    """
    self._classes = classes
    self._by_name: dict[str, tuple[int, ...]] | None = None
    self.width = 1
    if file is None:
      return
    content = _read(file, "answers_file")
    if not isinstance(content, Mapping):
      content = {str(i + 1): labels for i, labels in enumerate(content)}
      self._numbered = True
    else:
      self._numbered = False
    self._by_name = {
      name: self._read_labels(file, name, labels)
      for name, labels in content.items()
    }
    self.width = max(map(len, self._by_name.values()), default=1) or 1

  def _read_labels(self, file, name, labels) -> tuple[int, ...]:
    labels = labels if isinstance(labels, list) else [labels]
    of_label = self._classes.of_label
    if not all(isinstance(label, str | int) for label in labels):
      raise UserError(
        f"config.evals: answers_file={file!r}: {name!r} must have a label or a "
        f"list of labels, not {labels!r}"
      )
    return tuple(of_label[label] for label in labels if label in of_label)

  def of(self, example: Example) -> tuple[int, ...]:
    """Returns the right classes; none for an image that is to be left out."""
    if self._by_name is None:
      found = self._classes.of_label.get(example.label)
      return () if found is None else (found,)
    name = example.name.rpartition("/")[2]
    if self._numbered:
      number = re.search(r"(\d+)(\.\w+)?$", name)
      name = str(int(number[1])) if number else name
    return self._by_name.get(name, ())


def _read(file: str, field: str) -> Any:
  """Returns the lines of a text file, or what a JSON file holds."""
  path = pathlib.Path(file).expanduser()
  try:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".json":
      content = [line.strip() for line in text.splitlines() if line.strip()]
    else:
      content = json.loads(text)
  except OSError as error:
    raise UserError(
      f"config.evals: {field}={file!r}: {error.strerror}"
    ) from error
  except ValueError as error:
    raise UserError(
      f"config.evals: {field}={file!r}: cannot be read ({error})"
    ) from error
  if not isinstance(content, list | Mapping) or not content:
    raise UserError(f"config.evals: {field}={file!r}: the list is empty")
  return content
