"""WORKDIR/starts.jsonl: when a run ran, on what, and with which versions.

A line for every start of the run; the last one is kept up to date, so a run
that is killed leaves the time of its last log. Nothing here is read by
training.
"""

from collections.abc import Mapping
import datetime
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

from etils import epath
import flax
import jax
import numpy as np

from big_siglip.run.workdir import write_whole

FILE = "starts.jsonl"
_ROOT = pathlib.Path(__file__).resolve().parents[1]


class Starts:
  """Notes one start of a run; only process 0 should hold one."""

  def __init__(self, folder: epath.Path, step: int):
    """Adds a line to the run's file.

    Args:
      folder: the run's.
      step: the step that it starts from.
    """
    self._path = folder / FILE
    old = self._path.read_text() if self._path.exists() else ""
    self._before = old if old.endswith("\n") or not old else f"{old}\n"
    now = _now()
    self._line = {
      "start": now,
      "last_seen": now,
      "first_step": step,
      "last_step": step,
      **_where(),
    }
    self._write()

  def seen(self, step: int) -> None:
    """Notes that the run has come so far."""
    self._line |= {"last_seen": _now(), "last_step": step}
    self._write()

  def _write(self) -> None:
    write_whole(self._path, f"{self._before}{json.dumps(self._line)}\n")


def _where() -> Mapping[str, Any]:
  """Returns the hardware and the versions of this process."""
  return {
    "processes": jax.process_count(),
    "devices": jax.device_count(),
    "device_kind": jax.devices()[0].device_kind,
    "cpus": os.cpu_count(),  # Of one process's machine.
    "versions": {
      "python": platform.python_version(),
      "jax": jax.__version__,
      "flax": flax.__version__,
      "numpy": np.__version__,
    },
    "commit": _commit(),
  }


def _commit() -> str | None:
  """Returns the checkout's git commit, "-dirty" if edited; None without one."""
  if not (_ROOT / ".git").exists():
    return None  # Installed, perhaps below some other project's checkout.
  command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
  command += ["--exclude=*"]  # Never the name of a tag.
  try:
    done = subprocess.run(
      command, cwd=_ROOT, capture_output=True, text=True, timeout=20
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() or None


def _now() -> str:
  now = datetime.datetime.now(datetime.UTC)
  return now.isoformat(timespec="seconds")
