"""Progress bars, where something can show them; importing takes no time."""

import os
import sys
from typing import Any


def in_notebook() -> bool:
  """Returns whether standard error is a notebook's, which shows bars."""
  return type(sys.stderr).__module__.partition(".")[0] == "ipykernel"


def bar_class() -> Any:
  """Returns the tqdm to use: a notebook that has widgets shows its own."""
  if not in_notebook():
    from tqdm import tqdm
  else:
    import warnings

    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # That there are no widgets.
      from tqdm.auto import tqdm
  return tqdm


def on_terminal() -> bool:
  """Returns whether bars can be shown: on a terminal that has a width."""
  if in_notebook():
    return True
  try:
    if sys.stderr is None or not sys.stderr.isatty():
      return False
  except ValueError:  # It was closed.
    return False
  try:
    return os.get_terminal_size(sys.stderr.fileno()).columns > 0
  except OSError:  # A notebook's, say.
    return True


def still_line(after: float) -> Any:
  """Returns a tqdm of a text alone, shown after seconds until its end.

  None where there is no bar, and in a notebook, which cannot show one below
  another: there it is lines that tell.
  """
  if in_notebook() or not on_terminal():
    return None
  import tqdm

  return tqdm.tqdm(
    file=sys.stderr,
    bar_format="{desc}",
    leave=False,
    dynamic_ncols=True,
    delay=after,
  )
