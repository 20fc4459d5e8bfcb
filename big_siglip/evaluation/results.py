"""Evaluating a checkpoint apart from its training: results, and their files."""

from collections.abc import Callable, Mapping
import json
import math
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from big_siglip import progress
from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import naming_evaluation, raise_problems, UserError
from big_siglip.evaluation import rows
from big_siglip.evaluation.intervals import interval, LEVEL
from big_siglip.evaluation.reading import IMAGES, limit_names
from big_siglip.evaluators import Evaluator, Result
from big_siglip.run import workdir
from big_siglip.schema.fields import evaluation_problems


def with_evals(
  trained: ConfigDict,
  config: ConfigDict | None,
  evals: ConfigDict | None,
) -> ConfigDict:
  """Returns a run's config with the evaluations that are asked for.

  Args:
    trained: the run's config.
    config: of --config: a whole one, which must see images and texts as the run
      does; its evaluations are taken.
    evals: of --evals: evaluations alone.

  Raises:
    UserError: both are given, there is none, or preprocessing differs.
  """
  if config is not None and evals is not None:
    raise UserError("--config and --evals: give one of the two")
  changed = trained.copy_and_resolve_references()
  if config is not None:
    raise_problems(preprocessing_problems(trained, config))
    changed.evals = config.evals
  if evals is not None:
    changed.evals = evals
  if not changed.evals:
    raise UserError(
      "config.evals is empty: name evaluations with --config or --evals"
    )
  raise_problems(evaluation_problems(changed.evals, "config.evals"))
  return changed


def preprocessing_problems(trained: ConfigDict, given: ConfigDict) -> list[str]:
  """Returns a line for all that makes images or texts other than in training.

  Args:
    trained: the checkpoint's config.
    given: what it is to be evaluated with.
  """
  differences = Preprocessing.of(given).differences(Preprocessing.of(trained))
  if not differences:
    return []
  return [
    f"--config preprocesses otherwise than the checkpoint was trained: "
    f"{'; '.join(differences)}; set them back, or give evaluations alone "
    "(--evals)"
  ]


def run(evaluators: Mapping[str, Evaluator], params: Any) -> dict[str, Result]:
  """Returns what every evaluator says of the parameters."""
  results = {}
  for name, evaluator in evaluators.items():
    progress.say(f"evaluating {name}")
    with naming_evaluation(name):
      result = evaluator(params)
    limits = {k: interval(score) for k, score in result.scores.items()}
    limits = {**result.intervals, **limits}
    results[name] = result._replace(intervals=limits)
  return results


def flat(results: Mapping[str, Result]) -> dict[str, float | None]:
  """Returns {"evals/NAME/METRIC": number}; None for what is not finite.

  "evals/NAME/images" is how many images that were, and METRIC_low and
  METRIC_high are the limits of its interval, where it has one.
  """
  numbers: dict[str, float | None] = {}
  for name, result in results.items():
    said: dict[str, float] = {}
    for metric, value in result.metrics.items():
      said[metric] = value
      if metric in result.intervals:
        said |= zip(limit_names(metric), result.intervals[metric], strict=True)
    if result.images is not None:
      said[IMAGES] = result.images
    numbers |= {f"evals/{name}/{k}": _finite(v) for k, v in said.items()}
  return numbers


def write_rows(
  results: Mapping[str, Result], place: Callable[[str, bool], epath.Path]
) -> dict[str, epath.Path]:
  """Writes the rows of all evaluations that have some; for one process.

  Args:
    results: of `run`.
    place: (an evaluation's name, whether it is one of several) -> its file.

  Returns:
    The files.
  """
  tables = {k: result.rows for k, result in results.items() if result.rows}
  files = {name: place(name, len(tables) > 1) for name in tables}
  for name, make in tables.items():
    rows.write(files[name], make())
  return files


def told_of_wrong(result: Result) -> str:
  """Returns ": 12 of 200 images are wrong"; "" where nothing is."""
  if "accuracy" not in result.scores:
    return ""
  value = result.scores["accuracy"].value
  return f": {int((value < 1).sum()):,} of {len(value):,} images are wrong"


def write(
  file: epath.Path,
  *,
  checkpoint: epath.Path,
  evals: ConfigDict,
  results: Mapping[str, Result],
  files: Mapping[str, epath.Path] = {},
) -> None:
  """Writes all results as one JSON object; nobody sees it half written.

  What the file says of the same checkpoint, in other evaluations, is kept.

  {"checkpoint": path, "step": number, "evaluations": {name: {"spec": the
  section, "images": how many, "metrics": {...}, "intervals": {metric: [low,
  high]}, "rows": name of a file beside it, "details": {...}}}};
  docs/evaluation.md says what each kind's details hold.

  Args:
    file: to write.
    checkpoint: what was evaluated.
    evals: the sections.
    results: of `run`.
    files: {name: file of its rows}, of those that have some.
  """
  evaluations = {
    name: {
      "spec": workdir.as_json(evals)[name],
      "images": result.images,
      "metrics": {k: _finite(v) for k, v in result.metrics.items()},
      "intervals": result.intervals,
      "rows": _beside(files.get(name), file),
      "details": result.details,
    }
    for name, result in results.items()
  }
  content = {"checkpoint": str(checkpoint), "step": step_of(checkpoint)}
  try:
    old = _read(file)
    if all(old.get(key) == value for key, value in content.items()):
      evaluations = {**old["evaluations"], **evaluations}
    content["evaluations"] = evaluations
    file.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_whole(file, json.dumps(content) + "\n")
  except OSError as error:
    raise UserError(f"{file}: not writable ({error.strerror})") from error


def step_of(checkpoint: epath.Path) -> int:
  """Returns the step of a checkpoint; 0 for published weights."""
  is_step = checkpoint.parent.name == "checkpoints"
  return int(checkpoint.name) if is_step and checkpoint.name.isdecimal() else 0


def _read(file: epath.Path) -> dict[str, Any]:
  try:
    return dict(json.loads(file.read_text()))
  except (FileNotFoundError, ValueError, TypeError):
    return {}  # Another's file, or none.


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def _beside(rows_file: epath.Path | None, file: epath.Path) -> str | None:
  """Returns the name of a file in the same folder; the path of another."""
  if rows_file is None:
    return None
  same = rows_file.parent == file.parent
  return rows_file.name if same else str(workdir.absolute(str(rows_file)))


def table(results: Mapping[str, Result]) -> str:
  """Returns the metrics for a terminal: a block of lines each evaluation."""
  lines = []
  for name, result in results.items():
    images = "" if result.images is None else f": {_images(result.images)}"
    given = f", {LEVEL:.0%} intervals" if result.intervals else ""
    none = ", no intervals: its metrics are no means over images"
    lines.append(f"  {name}{images}{given or (none if images else '')}")
    for metric, value in result.metrics.items():
      line = f"    {metric:32} {_short(value)}"
      if metric in result.intervals:
        low, high = result.intervals[metric]
        line += f"  [{low:.4f}, {high:.4f}]"
      lines.append(line)
  return "\n".join(lines)


def _images(count: int) -> str:
  return f"{count:,} image{'' if count == 1 else 's'}"


def _short(value: float) -> str:
  whole = float(value).is_integer() and abs(value) < 1e15
  return f"{int(value):>10}" if whole and abs(value) > 1 else f"{value:10.4f}"
