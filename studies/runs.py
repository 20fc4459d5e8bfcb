"""Whole runs of a config, a setting and a seed each, as `big-siglip train`."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from big_siglip import api
from studies.data import ROOT


def train(
  folder: pathlib.Path,
  config: str,
  settings: Mapping[str, Mapping[str, Any]],
  seeds: Sequence[int],
) -> dict[str, list[dict[str, float]]]:
  """Returns {setting: the last metrics of each seed}.

  A seed fixes first parameters and order of the examples in all settings. What
  a killed study left goes on, and what is finished is read.

  Args:
    folder: gets a run each, named after setting and seed.
    config: a file of configs/, without its ending.
    settings: {name: fields that differ from the config}.
    seeds: of each setting.
  """
  file = ROOT / "configs" / f"{config}.py"
  results = {}
  # Seeds first: a study that is stopped half way has compared all settings.
  for seed in seeds:
    for name, changes in settings.items():
      loaded = api.load_config(file, {**changes, "seed": seed})
      run = api.train(loaded, place(folder, name, seed))
      if not run.finished:
        raise SystemExit(f"{run.folder}: stopped; the same command goes on")
      results.setdefault(name, []).append({**run.metrics, "seed": seed})
  return results


def place(folder: pathlib.Path, setting: str, seed: int) -> pathlib.Path:
  """Returns where the run of a setting and seed lies."""
  return folder / "runs" / f"{setting.replace(' ', '_')}-{seed}"
