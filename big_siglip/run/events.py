"""TensorBoard's event files, written without PyTorch."""

from collections.abc import Iterator
import contextlib
import sys


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
  """Keeps tensorboardX from loading PyTorch, which it does where it can.

  That takes seconds and hundreds of megabytes, and no tensor is ever given.
  """
  loaded = sys.modules.get("torch")
  sys.modules["torch"] = None  # type: ignore
  try:
    yield
  finally:
    del sys.modules["torch"]
    if loaded is not None:
      sys.modules["torch"] = loaded


with _without_torch():
  from tensorboardX import SummaryWriter as SummaryWriter
