"""What columns and values are called in Milvus, and conditions on them.

Its servers differ in what they know of empty values, so beside each column
stands another, which says whether there is a value.
"""

import re

# What its expressions mean otherwise.
_WORDS = ("and", "or", "not", "in", "like", "is", "null", "true", "false")


def field(column: str) -> str:
  """Returns what a column is called, which must be letters and digits."""
  plain = re.fullmatch(r"(?!x_)[a-z]\w*", column, re.IGNORECASE | re.ASCII)
  if plain and column.lower() not in _WORDS:
    return column
  return f"x_{column.encode().hex()}"


def has_value(column: str) -> str:
  """Returns the name of the column that says whether another is filled."""
  return f"_has_{field(column)}"


def compared(
  column: str, sign: str, value: int | float | str | bool
) -> tuple[str, str]:
  """Returns what is true where a comparison is, and where it is false."""
  there = f"{has_value(column)} == true"
  found = f"{field(column)} {sign} {_value(value)}"
  return f"{there} and {found}", f"{there} and not ({found})"


def _value(value: int | float | str | bool) -> str:
  if isinstance(value, str):
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
  return str(value).lower()
