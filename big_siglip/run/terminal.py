"""Lines for whoever watches a run, if anybody still does."""

import os
import sys


def say(text: str) -> None:
  """Prints a line at once.

  Where the reader is gone, as after `python main.py ... | head`, this line and
  all that follow are dropped: a run does not end for that.
  """
  try:
    print(text, flush=True)
  except BrokenPipeError:
    drop_output()


def drop_output() -> None:
  """Lets whatever is printed from now on go nowhere, unflushed lines too."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, sys.stdout.fileno())
  os.close(nowhere)
