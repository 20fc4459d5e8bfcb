"""What this machine keeps about files that lie elsewhere."""

import hashlib
import os
import time

from big_siglip.datasets.known import default_data_dir


def cache_path(path: str, what: str) -> str:
  """Returns where this machine keeps something about the file at `path`."""
  # Names of files need not be Unicode.
  said = f"{path}\n{what}".encode("utf-8", "surrogateescape")
  digest = hashlib.sha256(said).hexdigest()[:24]
  name = path.rsplit("/", 1)[-1]
  return os.path.join(default_data_dir(), "sources", f"{digest}-{name}")


def write_atomically(path: str, data: bytes) -> None:
  """Writes a local file that nobody sees half written.

  Raises:
    OSError: it cannot be written.
  """
  os.makedirs(os.path.dirname(path), exist_ok=True)
  partial = f"{path}.{os.getpid()}.{time.monotonic_ns()}.partial"
  try:
    with open(partial, "wb") as file:
      file.write(data)
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)
