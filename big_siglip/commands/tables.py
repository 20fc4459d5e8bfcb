"""Flags that name a table to write."""

from big_siglip.errors import UserError
from big_siglip.schema import words


def check(file: str, flag: str) -> None:
  """Raises a `UserError` if a file's name does not say what it will hold."""
  if not file.lower().endswith(words.TABLES):
    endings = ", ".join(words.TABLES)
    raise UserError(f"{flag}={file}: must end in one of {endings}")
