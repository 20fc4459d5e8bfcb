"""What a run that started from trained weights has moved: finetuning.json.

Of each evaluation it says whether its images were trained on: what a model has
seen it may have learnt by heart.
"""

from collections.abc import Callable
import json
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip.errors import UserError
from big_siglip.metrics import read_metrics
from big_siglip.models import merged
from big_siglip.run.workdir import write_whole
from big_siglip.trained import initial
from big_siglip.training_data import trained_on


def report(
  config: ConfigDict,
  params: Any,
  random: Callable[[], Any],
  mesh: Mesh,
  folder: epath.Path,
) -> str:
  """Writes finetuning.json, and returns lines that say the same.

  All processes call it; the first one writes.

  Args:
    config: of the run.
    params: the parameters at its end.
    random: returns those of a random start. Parameters alone: a second state of
      the optimizer would not fit beside the first.
    mesh: where both lie.
    folder: of the run.
  """
  try:
    before = initial.initial_params(config, random(), mesh)
  except UserError as error:  # The weights may be gone by now.
    return f"finetuning.json is not written: {error}"
  changed = initial.change(
    merged(params, config.model), merged(before, config.model)
  )
  evaluations = _evaluations(folder)
  images = {
    name: trained_on(config, spec) for name, spec in config.evals.items()
  }
  if jax.process_index() == 0:
    written = {
      "init": config.init.path,
      "steps": config.total_steps,
      "relative_change": changed,
      "evaluations": evaluations,
      "images": images,
    }
    text = json.dumps(written, indent=2)
    write_whole(folder / "finetuning.json", text + "\n")
  lines = [f"{'evaluation':46} {'before':>8} {'after':>8}  images"]
  for name, value in evaluations.items():
    first, last = map(_number, value.values())
    seen = images.get(name.split("/")[1], "")
    lines.append(f"{name:46} {first:>8} {last:>8}  {seen}".rstrip())
  lines += [
    f"{part:46} moved by {value:.2%}" for part, value in changed.items()
  ]
  return "\n".join(lines)


def _number(value: float | None) -> str:
  return "nan" if value is None else f"{value:.4f}"


def _evaluations(folder: epath.Path) -> dict[str, dict[str, float | None]]:
  """Returns the first and the last value of every evaluation's metrics.

  None is what was not finite, as in metrics.jsonl.
  """
  values: dict[str, list[float | None]] = {}
  for line in read_metrics(folder):
    for name in line.keys() - {"step"}:
      if name.startswith("evals/"):
        values.setdefault(name, []).append(line[name])
  return {
    name: {"before": found[0], "after": found[-1]}
    for name, found in sorted(values.items())
  }
