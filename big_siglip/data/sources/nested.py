"""Fields within fields, by paths such as "json/width"."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import numpy as np

# Who speaks in a conversation, and who says nothing of the image.
_SPEAKERS = ("from", "role")
_ASKING = ("human", "user", "system", "question", "tool", "function")


def dig(value: Any, key: str) -> Any:
  """Returns what lies at "a/b" in nested mappings; lists give lists.

  Of a conversation, a list of {from, value} or {role, content}, it takes what
  answers say: "conversations/value" has no questions.
  """
  if isinstance(value, Mapping) and key in value:
    return value[key]  # Its own name has the slash.
  for part in key.split("/"):
    if isinstance(value, Mapping):
      value = _inner(value, part)
    elif isinstance(value, list | tuple):
      found = [v for v in _flat(value) if isinstance(v, Mapping)]
      if part not in _SPEAKERS:
        found = [v for v in found if not _asks(v)]
      value = [_inner(v, part) for v in found]
    else:
      return None
  return value


def _inner(value: Mapping[str, Any], part: str) -> Any:
  """Returns a field; of a conversation that is stored by field, its answers."""
  found = value.get(part)
  speakers = next((value[s] for s in _SPEAKERS if s in value), None)
  if part in _SPEAKERS or not isinstance(speakers, list):
    return found
  if not isinstance(found, list) or len(speakers) != len(found):
    return found
  pairs = zip(found, speakers, strict=True)
  return [f for f, who in pairs if str(who).lower() not in _ASKING]


def _asks(turn: Mapping[str, Any]) -> bool:
  """Whether a part of a list is a question, or an instruction."""
  return any(str(turn[s]).lower() in _ASKING for s in _SPEAKERS if s in turn)


def _flat(values: Sequence[Any]) -> Sequence[Any]:
  """Returns the items of lists in place of these."""
  if not any(isinstance(value, list) for value in values):
    return values
  lists = (value if isinstance(value, list) else [value] for value in values)
  return list(itertools.chain.from_iterable(lists))


def as_texts(value: Any) -> list[str]:
  """Returns the texts of a field: of one, of several, or of none."""
  if isinstance(value, bytes):
    value = value.decode("utf-8", "replace")
  if isinstance(value, str):
    return [value] if value.strip() else []
  if isinstance(value, list | tuple | np.ndarray):
    return [text for item in value for text in as_texts(item)]
  return []
