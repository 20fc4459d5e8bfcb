"""Whole runs, of a way to train and a seed each, as `big-siglip train`."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

import big_siglip
from big_siglip import api
from studies.data import ROOT

# Changes to siglip2/scenes_pretrain and what goes on from it, which learn in
# fewer steps since docs/studies.md was measured.
PATCHES_OF_12 = {
  "batch_size": 64,
  "model.logit_bias_init": -4.1,
  "model.image.image_size": 60,
  "model.image.patch_size": 12,
  "model.image.mean": (0.5, 0.5, 0.5),
  "model.image.std": (0.5, 0.5, 0.5),
  "optimizer.rules": (("image/position_embedding", {"learning_rate": 10.0}),),
  "terms.locca.bins": 60,
}


@dataclasses.dataclass(frozen=True)
class Way:
  """How a run is trained.

  Attributes:
    config: a file of configs/, without its ending.
    changes: fields that differ from it.
    after: the way whose run of the same seed it goes on from, as a stage unless
      `changes` say which state it takes.
  """

  config: str
  changes: Mapping[str, Any]
  after: str | None = None


def train(
  folder: pathlib.Path, ways: Mapping[str, Way], seeds: Sequence[int]
) -> dict[str, list[dict[str, float]]]:
  """Returns {way: the last metrics of each seed}.

  A seed fixes first parameters and order of the examples in all ways. What a
  killed study left goes on, and what is finished is read.

  Args:
    folder: gets a run each, named after way and seed.
    ways: {name: way}; what others go on from stands before them.
    seeds: of each way.
  """
  results = {}
  # Seeds first: a study that is stopped half way has compared all ways.
  for seed in seeds:
    for name, way in ways.items():
      fields = {**way.changes, "seed": seed}
      if way.after is not None:
        before = place(folder, way.after, seed)
        stage = {"init.path": str(before), "init.state": "all"}
        fields = stage | fields
      file = ROOT / "configs" / f"{way.config}.py"
      run = api.train(api.load_config(file, fields), place(folder, name, seed))
      if not run.finished:
        raise SystemExit(f"{run.folder}: stopped; the same command goes on")
      results.setdefault(name, []).append({**run.metrics, "seed": seed})
  return results


def place(folder: pathlib.Path, way: str, seed: int) -> pathlib.Path:
  """Returns where the run of a way and seed lies."""
  return folder / "runs" / f"{way.replace(' ', '_')}-{seed}"


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
  asked = json.loads(evals.to_json_best_effort())

  def compute() -> dict[str, float]:
    results = big_siglip.evaluate(run, evals, progress=True)
    return {
      f"{section}/{metric}": value
      for section, result in results.items()
      for metric, value in result.metrics.items()
    }

  return kept(run / f"{name}.json", asked, compute)


def kept(
  file: pathlib.Path, asked: Any, compute: Callable[[], dict[str, float]]
) -> dict[str, float]:
  """Returns metrics: those of a file if it was asked the same, or computed.

  Args:
    file: is written if they are computed.
    asked: what they depend on, as JSON reads it.
    compute: returns them.
  """
  if file.exists():
    found = json.loads(file.read_text())
    if found.get("asked") == asked:
      return found["metrics"]
  metrics = compute()
  file.write_text(json.dumps({"asked": asked, "metrics": metrics}))
  return metrics
