"""The one exception that stands for a mistake of the user, not of ours."""

from collections.abc import Iterator
import contextlib
import sys


class UserError(ValueError):
  """A mistake of the user: its message names field, value and what is allowed.

  Programs print the message alone and exit with status 2; any other exception
  is a fault of the program and keeps its trace.
  """


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
  """Turns a `UserError` in the block into its message and exit status 2."""
  try:
    yield
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
