"""Fields of several texts: caption_0, caption_1 ..."""

from collections.abc import Sequence
import re

_NUMBERED = re.compile(r"(.*?)s?[ _.-]?\d+", re.IGNORECASE)


def stem(field: str) -> str:
  """Returns what a field is called, in small letters, without its number."""
  name = field.strip().lower()
  match = _NUMBERED.fullmatch(name)
  return match[1] if match else name


def alike(fields: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
  """Returns the fields that are called by the first of some names and a number.

  Args:
    fields: that there are.
    names: best first.

  Returns:
    Those of one name, with that without a number; none for less than two.
  """
  for name in names:
    found = tuple(f for f in fields if stem(f) == name.lower())
    if len(found) > 1:
      return found
  return ()
