"""All that a run's folder says of it, read without trusting any of it."""

from collections.abc import Iterable
import dataclasses
import datetime
import json
import math
from typing import Any

from etils import epath

from big_siglip.errors import UserError
from big_siglip.evaluation import reading
from big_siglip.evaluation.reading import is_about, Results
from big_siglip.run import workdir
from big_siglip.run.starts import FILE as STARTS

Point = tuple[int, float | None]  # Step, value; None: not finite.
_MAX_SKIPPED = 100_000  # Lines of skipped.jsonl to look at.


@dataclasses.dataclass
class Run:
  """One run, as its folder holds it.

  Attributes:
    name: short, and unlike that of the other runs of the report.
    folder: where it lies.
    config: nested dict.
    lines: the metrics, by step; one or more dicts a step.
    starts: one dict for each start, oldest first.
    skipped: data that could not be read, a dict each.
    finetuning: what `finetuning.json` says, if it is there.
    checkpoint: the newest one, if there is one.
    notes: what is missing or damaged, a sentence each.
    results: of tools/evaluate.py, if they lie in the folder.
  """

  name: str
  folder: epath.Path
  config: dict[str, Any]
  lines: list[dict[str, Any]]
  starts: list[dict[str, Any]]
  skipped: list[dict[str, Any]]
  finetuning: dict[str, Any]
  checkpoint: epath.Path | None
  notes: list[str]
  results: Results | None = None

  @property
  def step(self) -> int:
    """The last step that anything is known of."""
    steps = [line["step"] for line in self.lines]
    saved = self.checkpoint.name if self.checkpoint else ""
    return max([0, *steps, *([int(saved)] if saved.isdecimal() else [])])

  @property
  def total_steps(self) -> int | None:
    """How many it is to take; None for a model that was only imported."""
    total = self.config.get("total_steps")
    return total if isinstance(total, int) else None

  @property
  def seconds(self) -> float | None:
    """How long its starts ran, in all; None where nothing was recorded."""
    times = [seconds(start) for start in self.starts]
    known = [time for time in times if time is not None]
    return sum(known) if known else None

  @property
  def device_hours(self) -> float | None:
    """Hours, times the devices of each start; None if not recorded."""
    parts = [
      seconds(start) * start["devices"] / 3600
      for start in self.starts
      if seconds(start) is not None and _is_number(start.get("devices"))
    ]
    return sum(parts) if parts else None

  def points(self, name: str) -> list[Point]:
    """Returns the values of one metric by step."""
    points = {}
    for line in self.lines:
      if name in line:
        value = line[name]
        points[line["step"]] = value if _is_number(value) else None
    return sorted(points.items())

  def names(self) -> list[str]:
    """Returns the names of all metrics."""
    return sorted({name for line in self.lines for name in line} - {"step"})

  def last(self, name: str) -> float | None:
    """Returns the last value that is a number."""
    values = [v for _, v in self.points(name) if v is not None]
    return values[-1] if values else None


def evaluations_of(checkpoint: epath.Path) -> dict[str, tuple[int, float]]:
  """Returns the last evaluations up to a checkpoint.

  Args:
    checkpoint: RUN/checkpoints/STEP; of other weights nothing is known.

  Returns:
    (step, value) of each "evals/NAME/METRIC".
  """
  if checkpoint.parent.name != "checkpoints":
    return {}
  run = read_run(checkpoint.parent.parent, "")
  found = {}
  names = run.names()
  for name in names:
    if not name.startswith("evals/") or is_about(name, names):
      continue
    for step, value in run.points(name):
      if value is not None and step <= int(checkpoint.name):
        found[name] = step, value
  return found


def seconds(start: dict[str, Any]) -> float | None:
  """Returns how long a start ran, to its last log; None if not known."""
  try:
    begin, end = (
      datetime.datetime.fromisoformat(start[key])
      for key in ("start", "last_seen")
    )
    return max((end - begin).total_seconds(), 0.0)
  except (KeyError, TypeError, ValueError):
    return None


def read_run(folder: epath.Path, name: str) -> Run:
  """Returns what a run's folder says.

  Args:
    folder: of the run.
    name: what the report calls it.

  Raises:
    UserError: no run lies there.
  """
  config = workdir.read_config(folder)
  if not isinstance(config, dict):
    raise UserError(f"{folder / 'config.json'}: must be a JSON object")
  notes = []
  lines = [
    line
    for file in ("metrics.jsonl", "evaluations.jsonl")
    for line in _json_lines(folder / file, notes, needs=("step",))
  ]
  lines.sort(key=lambda line: line["step"])  # Stable.
  damaged = sorted(path.name for path in folder.glob("damaged-*"))
  if damaged:
    notes.append(f"Damaged checkpoints were set aside: {', '.join(damaged)}.")
  checkpoint = _newest(folder / "checkpoints")
  if not lines:
    notes.append("No metrics yet: nothing has been logged.")
  if not checkpoint:
    notes.append("No checkpoint yet: there are no pictures of this run.")
  starts = list(_json_lines(folder / STARTS, notes))
  if not starts:
    notes.append(f"Hardware and time were not recorded ({STARTS} is missing).")
  skipped = list(_json_lines(folder / "skipped.jsonl", notes))
  results = _results(folder, notes)
  if results:
    lines.append({"step": results.step, **reading.flat(results)})
    lines.sort(key=lambda line: line["step"])
  return Run(
    name=name,
    folder=folder,
    config=config,
    lines=lines,
    starts=starts,
    skipped=skipped[:_MAX_SKIPPED],
    finetuning=_json_object(folder / "finetuning.json", notes),
    checkpoint=checkpoint,
    notes=notes,
    results=results,
  )


def _results(folder: epath.Path, notes: list[str]) -> Results | None:
  """Returns the results that lie in a run's own folder."""
  if not reading.has_results(str(folder)):
    return None
  try:
    results = reading.read(str(folder))
  except UserError as error:
    notes.append(f"{error}.")
    return None
  if epath.Path(results.checkpoint).parent != folder / "checkpoints":
    notes.append(
      f"{reading.FILE}: is of another model, {results.checkpoint}, and is left "
      "out."
    )
    return None
  return results


def _json_lines(
  path: epath.Path, notes: list[str], needs: tuple[str, ...] = ()
) -> Iterable[dict[str, Any]]:
  """Yields the objects of a file; counts the other lines in `notes`."""
  bad = 0
  for line in _text(path, notes).splitlines():
    try:
      record = json.loads(line)
    except ValueError:
      record = None
    if isinstance(record, dict) and all(_is_whole(record, k) for k in needs):
      yield record
    elif line.strip():
      bad += 1
  if bad:
    lines = "1 line is" if bad == 1 else f"{bad} lines are"
    notes.append(f"{path.name}: {lines} damaged and left out.")


def _json_object(path: epath.Path, notes: list[str]) -> dict[str, Any]:
  text = _text(path, notes)
  try:
    value = json.loads(text) if text else {}
  except ValueError:
    value = None
  if isinstance(value, dict):
    return value
  notes.append(f"{path.name}: is damaged and left out.")
  return {}


def _text(path: epath.Path, notes: list[str]) -> str:
  try:
    data = path.read_bytes() if path.exists() else b""
  except OSError as error:
    notes.append(f"{path.name}: cannot be read ({error.strerror or error}).")
    return ""
  return data.decode("utf-8", "replace")


def _newest(checkpoints: epath.Path) -> epath.Path | None:
  names = (
    [c.name for c in checkpoints.iterdir()] if _is_dir(checkpoints) else []
  )
  steps = [int(name) for name in names if name.isdecimal()]
  return checkpoints / str(max(steps)) if steps else None


def _is_dir(path: epath.Path) -> bool:
  return path.exists() and path.is_dir()


def _is_number(value: Any) -> bool:
  """Whether it is finite, and neither text nor true or false."""
  plain = isinstance(value, int | float) and not isinstance(value, bool)
  return plain and math.isfinite(value)


def _is_whole(record: dict[str, Any], key: str) -> bool:
  value = record.get(key)
  return isinstance(value, int) and not isinstance(value, bool)
