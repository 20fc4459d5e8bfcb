"""Evaluations that were written before, found again with their rows."""

from collections.abc import Collection, Mapping
import dataclasses
import json
from typing import Any

from etils import epath

from big_siglip.errors import UserError
from big_siglip.evaluation import rows
from big_siglip.evaluators import dense
from big_siglip.evaluators.result import Table
from big_siglip.run import workdir
from big_siglip.schema import words

FILE = "results.json"
IMAGES = "images"
_ENDS = ("_low", "_high")


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One evaluation of a checkpoint.

  Attributes:
    name: the section's; of a file of rows alone, the file's.
    spec: the section; empty where it is not known.
    metrics: {name: number}; None for what is not finite.
    intervals: {metric: [low, high]}.
    images: how many the metrics are of; None where it is not known.
    file: of the rows, which may be missing; None where none were written.
  """

  name: str
  spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
  intervals: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  images: int | None = None
  file: epath.Path | None = None

  @property
  def has_answers(self) -> bool:
    """Whether its rows are right or wrong; those of patches are neither."""
    return self.spec.get("kind") not in dense.KINDS

  def rows(self) -> Table:
    """Returns the rows of the images, or queries, that were measured.

    Raises:
      UserError: there are none, or they cannot be read.
    """
    if self.file is None:
      raise UserError(
        f"evaluation {self.name!r} was written without rows: evaluate again "
        "with --output=FOLDER"
      )
    table = rows.read(self.file)
    return rows.take(table, rows.measured(table))


@dataclasses.dataclass(frozen=True)
class Results:
  """What a folder says of a checkpoint.

  Attributes:
    place: what messages call it, as it was given.
    folder: where the file lies.
    checkpoint: path of what was evaluated; "" where it is not known.
    step: of the checkpoint; 0 for published weights.
    evaluations: by name.
  """

  place: str
  folder: epath.Path
  checkpoint: str
  step: int
  evaluations: Mapping[str, Evaluation]


def limit_names(metric: str) -> tuple[str, str]:
  """Returns what the limits of a metric's interval are called."""
  low, high = (f"{metric}{end}" for end in _ENDS)
  return low, high


def is_about(name: str, names: Collection[str]) -> bool:
  """Whether a number says how sure another is, or of how many images it is."""
  ends = (name.removesuffix(end) for end in _ENDS if name.endswith(end))
  return name.endswith(f"/{IMAGES}") or any(base in names for base in ends)


def flat(results: Results) -> dict[str, float | None]:
  """Returns {"evals/NAME/METRIC": number}, as `results.flat` does."""
  numbers: dict[str, float | None] = {}
  for name, one in results.evaluations.items():
    said = dict(one.metrics)
    for metric, limits in one.intervals.items():
      said |= zip(limit_names(metric), limits, strict=True)
    if one.images is not None:
      said[IMAGES] = one.images
    numbers |= {f"evals/{name}/{k}": v for k, v in said.items()}
  return numbers


def has_results(path: str) -> bool:
  """Returns whether a folder holds the results of big-siglip evaluate."""
  return (workdir.absolute(path) / FILE).is_file()


def read(path: str) -> Results:
  """Returns the results of a folder, of its results.json, or of a rows file.

  Raises:
    UserError: there are none.
  """
  place = workdir.absolute(path)
  if place.name.lower().endswith(words.TABLES):
    if not place.exists():
      raise UserError(f"{path}: no such file")
    one = Evaluation(place.stem, file=place)
    return Results(path, place.parent, "", 0, {one.name: one})
  file = place if place.suffix == ".json" else place / FILE
  if not place.exists():
    raise UserError(f"{path}: no such file or folder")
  if not file.is_file():
    is_run = (place / "config.json").exists()
    model = path if is_run else "MODEL"
    what = "is a run or model, and" if is_run else "holds"
    raise UserError(
      f"{path}: {what} no {FILE}: evaluate first, with big-siglip evaluate "
      f"--checkpoint={model} --output=FOLDER"
    )
  try:
    content = json.loads(file.read_text())
    evaluations = {
      name: _evaluation(name, value, file.parent)
      for name, value in content["evaluations"].items()
    }
    checkpoint, step = str(content["checkpoint"]), int(content["step"])
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{file}: is no file of big-siglip evaluate ({error!r})"
    ) from error
  return Results(path, file.parent, checkpoint, step, evaluations)


def _evaluation(
  name: str, value: Mapping[str, Any], folder: epath.Path
) -> Evaluation:
  file = value.get("rows")
  return Evaluation(
    name,
    dict(value["spec"]),
    dict(value["metrics"]),
    dict(value.get("intervals", {})),  # Of older results there are none.
    value.get("images"),
    folder / file if file else None,
  )
