"""What has to be there before anything is timed; loads none of it."""

import importlib.metadata
import importlib.util

# {module: (package, oldest version that will do)}; those of setup.cfg.
NEEDS = {
  "absl": ("absl-py", "2.1"),
  "flax": ("flax", "0.12"),
  "jax": ("jax", "0.10"),
  "ml_collections": ("ml_collections", "1.1"),
  "numpy": ("numpy", "2.0"),
  "optax": ("optax", "0.2.8"),
}


def missing() -> list[str]:
  """Returns what has to be installed, as pip names it."""
  return [
    f"{package}>={oldest}"
    for module, (package, oldest) in NEEDS.items()
    if importlib.util.find_spec(module) is None
    or _numbers(importlib.metadata.version(package)) < _numbers(oldest)
  ]


def _numbers(version: str) -> list[int]:
  """Returns "0.2.8" as [0, 2, 8]; what follows the numbers is left out."""
  found = []
  for part in version.split("."):
    if not part.isdecimal():
      break
    found.append(int(part))
  return found
