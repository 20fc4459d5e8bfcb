"""Lines for whoever watches a run, if anybody still does."""

from big_siglip import progress
from big_siglip.errors import drop_output


def say(text: str) -> None:
  """Prints a line at once.

  Where nobody reads any more, as after `big-siglip train ... | head` or when a
  terminal was closed, this line and all that follow are dropped: a run does not
  end for that.
  """
  try:
    with progress.aside():
      print(text, flush=True)
  except OSError:
    drop_output()
