"""Which classes are right for an image: its label, or what a file says."""

from collections.abc import Mapping
import re

from big_siglip.data.sources import Example
from big_siglip.errors import UserError
from big_siglip.evaluators.classes import Classes
from big_siglip.evaluators.prompts import read_content


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
    content = read_content(file, "answers_file")
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
      found = self._classes.of_index.get(example.label)
      return () if found is None else (found,)
    name = example.name.rpartition("/")[2]
    if self._numbered:
      number = re.search(r"(\d+)(\.\w+)?$", name)
      name = str(int(number[1])) if number else name
    return self._by_name.get(name, ())
