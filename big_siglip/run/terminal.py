"""Lines for whoever watches a run, if anybody still does."""

import os
import sys


def say(text: str) -> None:
  """Prints a line at once.

  Where nobody reads any more, as after `python main.py ... | head` or when a
  terminal was closed, this line and all that follow are dropped: a run does not
  end for that.
  """
  try:
    print(text, flush=True)
  except OSError:
    drop_output()


def drop_output() -> None:
  """Lets whatever is printed from now on go nowhere, unflushed lines too."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, sys.stdout.fileno())
  os.close(nowhere)
