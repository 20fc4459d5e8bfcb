"""Whole runs of a config, a setting and a seed each, as `big-siglip train`."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

import big_siglip
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


def evaluate(
  run: pathlib.Path, name: str, evals: ConfigDict
) -> dict[str, float]:
  """Returns {"EVALUATION/METRIC": number} of a finished run.

  They are kept beside the run, and read where they are there.

  Args:
    run: of `place`.
    name: of the file.
    evals: sections.
  """
  file = run / f"{name}.json"
  asked = json.loads(evals.to_json_best_effort())
  if file.exists():
    kept = json.loads(file.read_text())
    if kept["evals"] == asked:
      return kept["metrics"]
  results = big_siglip.evaluate(run, evals, progress=True)
  metrics = {
    f"{section}/{metric}": value
    for section, result in results.items()
    for metric, value in result.metrics.items()
  }
  file.write_text(json.dumps({"evals": asked, "metrics": metrics}))
  return metrics
