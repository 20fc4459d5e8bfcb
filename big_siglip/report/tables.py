"""The tables of a report: plain rows of text, a column for each run."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from big_siglip.config import flatten
from big_siglip.evaluation.reading import IMAGES, limit_names
from big_siglip.report.curves import direction, evaluated, is_count, is_share
from big_siglip.report.runs import Run

MISSING = "–"
_MAX_LISTED = 100  # Skipped examples that a report names.


class Cell(NamedTuple):
  """What stands under a run.

  Attributes:
    text: the value.
    detail: what is said below it, smaller.
    best: whether no other run has a better one.
  """

  text: str
  detail: str = ""
  best: bool = False


class Row(NamedTuple):
  """A line of a table."""

  name: str
  cells: list[Cell]


def overview(runs: Sequence[Run]) -> list[Row]:
  """Returns how far each run is, and what it trains on what."""
  rows = [
    row("Progress", runs, _progress),
    row("Examples seen", runs, _examples_seen),
    row("Loss, last logged", runs, lambda run: number(run.last("loss"))),
    row("Image tower", runs, lambda run: _tower(run, "image")),
    row("Text tower", runs, lambda run: _tower(run, "text")),
    row("Loss function", runs, lambda run: _field(run, "loss.name")),
    row("Batch", runs, lambda run: _field(run, "batch_size")),
    row("Data", runs, _data),
    row("Started from", runs, _start),
  ]
  return worth_showing(rows)


def headline(run: Run) -> list[tuple[str, str]]:
  """Returns the few numbers that are asked for first."""
  total = run.total_steps
  steps = f"{run.step:,}" + (f" of {total:,}" if total else "")
  tiles = [("steps", steps), ("loss", number(run.last("loss")))]
  for name in evaluated([run]):
    metric = name.rpartition("/")[2]
    if metric in ("accuracy", "recall@1"):
      text = value_text(name, run.last(name))
      tiles.append((name.removeprefix("evals/").replace("_", " "), text))
  return [(label, text) for label, text in tiles if text][:6]


def evaluations(runs: Sequence[Run]) -> list[Row]:
  """Returns the last value of every metric, the best of several marked."""
  rows = []
  for name in evaluated(runs):
    if is_count(name):
      continue  # In the table of skipped data.
    values = [run.last(name) for run in runs]
    best = _best(name, values)
    cells = [
      Cell(
        value_text(name, value),
        "; ".join(
          filter(None, (_interval(run, name), _peak(run, name, value)))
        ),
        best is not None and value == best,
      )
      for run, value in zip(runs, values, strict=True)
    ]
    rows.append(Row(name.removeprefix("evals/"), cells))
  return rows


def evaluated_images(runs: Sequence[Run]) -> list[Row]:
  """Returns how many images each evaluation is of, where it is known."""
  names = dict.fromkeys(name.split("/")[1] for name in evaluated(runs))
  return worth_showing(
    [
      row(
        name, runs, lambda run, n=name: number(run.last(f"evals/{n}/{IMAGES}"))
      )
      for name in names
    ]
  )


def differences(runs: Sequence[Run]) -> list[Row]:
  """Returns the fields of the configs that are not alike in all runs."""
  flat = [dict(flatten(run.config)) for run in runs]
  fields = sorted({field for config in flat for field in config})
  rows = []
  for field in fields:
    texts = [_value(c[field]) if field in c else MISSING for c in flat]
    if len(set(texts)) > 1:
      rows.append(Row(field, [Cell(text) for text in texts]))
  return rows


def config_sections(run: Run) -> dict[str, list[tuple[str, str]]]:
  """Returns the whole config as {section: [(field, value)]}."""
  sections: dict[str, list[tuple[str, str]]] = {}
  for field, value in flatten(run.config):
    section, dot, rest = field.partition(".")
    key = section if dot else ""
    sections.setdefault(key, []).append((rest or field, _value(value)))
  return dict(sorted(sections.items()))


def skipped_counts(runs: Sequence[Run]) -> list[Row]:
  """Returns how much was left out, by what was recorded of it."""
  kinds = {n for run in runs for n in run.names() if n.startswith("skipped/")}
  titles = {
    "skipped_examples": "Examples replaced in training",
    **{kind: f"  {kind.removeprefix('skipped/')}" for kind in sorted(kinds)},
    "retried_reads": "Reads that went well at a later try",
    "skipped_steps": "Steps left out: not finite",
  }
  for name in evaluated(runs):
    part, _, last = name.removeprefix("evals/").rpartition("/")
    if is_count(name):
      titles[name] = f"{last.replace('_', ' ').capitalize()} by {part}"
  rows = [
    row(title, runs, lambda run, name=name: number(run.last(name)))
    for name, title in titles.items()
  ]
  named = [Cell(f"{len(run.skipped):,}") for run in runs]
  if any(run.skipped for run in runs):
    rows.insert(1, Row("  different ones, by name", named))
  return worth_showing(rows)


def skipped_list(run: Run) -> list[list[str]]:
  """Returns name, kind and reason of what was skipped first."""
  fields = ("step", "source", "name", "kind", "reason")
  return [
    [str(line.get(field, MISSING)) for field in fields]
    for line in run.skipped[:_MAX_LISTED]
  ]


def finetuning(run: Run) -> list[tuple[str, str]]:
  """Returns how far each part has moved from the weights it started from."""
  moved = run.finetuning.get("relative_change", {})
  if not isinstance(moved, dict):
    return []
  return [
    (str(part), f"{value:.2%}" if isinstance(value, float) else str(value))
    for part, value in moved.items()
  ]


def number(value: float | None) -> str:
  """Returns four digits of a number, or "" for none."""
  if value is None:
    return ""
  if float(value).is_integer():
    return f"{int(value):,}"
  return f"{value:.4g}"


def value_text(name: str, value: float | None) -> str:
  """Returns a metric as a table shows it: shares in percent."""
  if value is None:
    return MISSING
  if is_share(name) and 0 <= value <= 1:
    return f"{100 * value:.1f} %"
  return number(value)


def row(name: str, runs: Sequence[Run], tell: Callable[[Run], str]) -> Row:
  """Returns the row of what `tell` says of each run; "" for nothing."""
  return Row(name, [Cell(tell(run) or MISSING) for run in runs])


def worth_showing(rows: list[Row]) -> list[Row]:
  """Leaves out the rows that say nothing of any run."""
  return [row for row in rows if any(c.text != MISSING for c in row.cells)]


def _best(name: str, values: Sequence[float | None]) -> float | None:
  """Returns the best of several values that are not all alike."""
  known = [value for value in values if value is not None]
  better = direction(name)
  if len(known) < 2 or not better or min(known) == max(known):
    return None
  return max(known) if better > 0 else min(known)


def _interval(run: Run, name: str) -> str:
  """Returns the limits of the last value, where they are known."""
  values = run.points(name)
  limits = [dict(run.points(limit)) for limit in limit_names(name)]
  last = next((step for step, v in reversed(values) if v is not None), None)
  low, high = (of_step.get(last) for of_step in limits)
  if low is None or high is None:
    return ""
  return (
    f"{value_text(name, low).removesuffix(' %')} to {value_text(name, high)}"
  )


def _peak(run: Run, name: str, last: float | None) -> str:
  """Says when a metric was better than it is at the end, or when it is of."""
  points = [
    (value, step) for step, value in run.points(name) if value is not None
  ]
  if not points:
    return ""
  better = direction(name)
  if better and len(points) > 1:
    value, step = max(points, key=lambda point: (better * point[0], -point[1]))
    if value != last:
      return f"best {value_text(name, value)} at step {step:,}"
  step = points[-1][1]
  return "" if step == run.step else f"at step {step:,}"


def _progress(run: Run) -> str:
  total = run.total_steps
  if total is None:
    return f"step {run.step:,}"
  if run.step >= total:
    return f"finished: {total:,} steps"
  share = run.step / max(total, 1)
  return f"step {run.step:,} of {total:,} ({share:.0%}): in progress or stopped"


def _examples_seen(run: Run) -> str:
  batch = run.config.get("batch_size")
  return f"{run.step * batch:,}" if isinstance(batch, int) else ""


def _field(run: Run, path: str) -> str:
  flat = dict(flatten(run.config))
  return _value(flat[path]) if path in flat else ""


def _tower(run: Run, tower: str) -> str:
  flat = dict(flatten(run.config))
  parts = [
    (label, flat.get(f"model.{tower}.{field}"))
    for label, field in (
      ("", "size"),
      ("width", "width"),
      ("depth", "depth"),
      ("pixels", "image_size"),
      ("patch", "patch_size"),
      ("length", "length"),
    )
  ]
  texts = [f"{label} {value}".strip() for label, value in parts if value]
  rank = flat.get("model.lora.rank")
  return ", ".join(texts + ([f"LoRA of rank {rank}"] if rank else []))


def _data(run: Run) -> str:
  parts = [_field(run, f"data.{name}") for name in ("name", "split", "path")]
  return ", ".join(part for part in parts if part and part != "None")


def _start(run: Run) -> str:
  path = _field(run, "init.path")
  return "random weights" if path in ("", "None") else path


def _value(value: Any) -> str:
  return "None" if value is None else str(value)
