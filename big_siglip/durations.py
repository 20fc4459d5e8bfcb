"""How long things took on this machine last time, kept between programs."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
from typing import Any

_FILE = "durations.json"
_KEPT = 200  # The newest.


def cache_folder() -> pathlib.Path | None:
  """Returns where compiled programs are kept; None: nowhere.

  It is JAX_COMPILATION_CACHE_DIR, or big_siglip/compiled/MACHINE in the user's
  cache folder. JAX_ENABLE_COMPILATION_CACHE=false switches it off.
  """
  enabled = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower()
  if enabled in ("0", "f", "false", "n", "no", "off"):
    return None
  named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  if named:
    return pathlib.Path(named)
  caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  folder = pathlib.Path(caches).expanduser() / "big_siglip" / "compiled"
  return folder / _machine()


def _machine() -> str:
  """Returns a name for this kind of processor.

  Several machines may share a home folder, and a program that was compiled for
  one may not run on another.
  """
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = [f"flags {platform.processor()}"]
  kinds = {line for line in lines if line.startswith(("flags", "Features"))}
  digest = hashlib.sha256("\n".join(sorted(kinds)).encode()).hexdigest()
  return f"{platform.machine()}-{digest[:8]}"


def key(what: str, *parts: Any) -> str:
  """Returns a short key of what is done, and of all that it depends on.

  Args:
    what: is done, in words.
    parts: what JSON can hold, or else is told by its text.
  """
  text = json.dumps(parts, sort_keys=True, default=str)
  return f"{what} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def last(key: str) -> float | None:
  """Returns how many seconds it took last time; None: nobody knows."""
  return _read().get(key)


def note(key: str, seconds: float) -> None:
  """Keeps how long it took; does nothing where that cannot be written."""
  folder = cache_folder()
  if folder is None or "://" in str(folder):
    return
  known = _read()
  known.pop(key, None)
  known[key] = round(seconds, 1)  # The newest is last.
  partial = folder / f"{_FILE}.{os.getpid()}.partial"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(dict(list(known.items())[-_KEPT:]), indent=0))
    partial.replace(folder / _FILE)
  except OSError:
    with contextlib.suppress(OSError):
      partial.unlink()


def _read() -> dict[str, float]:
  """Returns {key: seconds}, the newest last; of a damaged file nothing."""
  folder = cache_folder()
  try:
    text = (folder / _FILE).read_text() if folder else "{}"
    found = json.loads(text)
  except (OSError, ValueError):
    return {}
  found = found if isinstance(found, dict) else {}
  return {k: v for k, v in found.items() if isinstance(v, int | float)}
