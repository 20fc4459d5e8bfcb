"""From records to a table, a picture and plain sentences."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # Draws into files; needs no screen.

from matplotlib import pyplot as plt
import numpy as np
from scipy import stats

INTERVALS = (
  "Intervals are of 95 %, Student's t over seeds; differences are paired by "
  "seed, which fixes first parameters and order of the examples."
)
# Of the sign of a difference.
SAID = {1: "is better", -1: "is worse", 0: "makes no difference that shows"}


class Interval(NamedTuple):
  """A mean and half of its confidence interval."""

  mean: float
  half: float

  def __str__(self) -> str:
    return f"{100 * self.mean:.1f} ± {100 * self.half:.1f}"

  @property
  def sign(self) -> int:
    """1 or -1 where the interval lies on that side of 0, else 0."""
    if abs(self.mean) <= self.half or not np.isfinite(self.half):
      return 0
    return 1 if self.mean > 0 else -1


def interval(values: Sequence[float]) -> Interval:
  """Returns mean and half of the 95 % interval; infinite of one value."""
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return Interval(float(values.mean()), float("inf"))
  error = values.std(ddof=1) / np.sqrt(len(values))
  half = stats.t.ppf(0.975, len(values) - 1) * error
  return Interval(float(values.mean()), float(half))


def score(records: Sequence[dict], name: str = "test") -> Interval:
  """Returns the interval of one of the records' numbers."""
  return interval([record[name] for record in records])


def difference(
  records: Sequence[dict], others: Sequence[dict], name: str = "test"
) -> Interval:
  """Returns the interval of the first minus the second, paired by seed."""
  pairs = zip(records, others, strict=True)
  return interval([a[name] - b[name] for a, b in pairs])


@dataclasses.dataclass(frozen=True)
class Curve:
  """A line of a picture.

  Attributes:
    label: of the legend.
    x: where each point lies.
    points: as many.
  """

  label: str
  x: Sequence[float]
  points: Sequence[Interval]


@dataclasses.dataclass(frozen=True)
class Panel:
  """One pair of axes; `ticks` names the places 0, 1 ... where x has no unit."""

  title: str
  x_label: str
  y_label: str
  curves: Sequence[Curve]
  log_x: bool = False
  ticks: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Report:
  """What a study says.

  Attributes:
    title: of the study.
    setting: what was trained, in a sentence or two.
    header: of the table.
    rows: as many cells each.
    findings: plain sentences: what the paper says and whether it shows here.
    panels: of the picture.
  """

  title: str
  setting: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  findings: Sequence[str]
  panels: Sequence[Panel]

  def markdown(self, picture: str) -> str:
    """Returns the text, with a link to the picture."""
    table = [self.header, ["---"] * len(self.header), *self.rows]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in table]
    parts = [f"## {self.title}", self.setting, INTERVALS, "\n".join(lines)]
    parts += ["\n".join(f"- {finding}" for finding in self.findings)]
    return "\n\n".join([*parts, f"![{self.title}]({picture})"]) + "\n"

  def draw(self, file: pathlib.Path) -> None:
    """Writes the picture as PNG."""
    figure, axes = plt.subplots(
      *(1, len(self.panels)),
      **dict(figsize=(5 * len(self.panels), 3.6), layout="constrained"),
      squeeze=False,
    )
    for axis, panel in zip(axes[0], self.panels, strict=True):
      for curve in panel.curves:
        means = 100 * np.array([point.mean for point in curve.points])
        halves = 100 * np.array([point.half for point in curve.points])
        halves = np.where(np.isfinite(halves), halves, 0)
        axis.errorbar(
          *(curve.x, means, halves),
          **dict(label=curve.label, marker="o", markersize=4, capsize=3),
          linestyle="none" if panel.ticks else "-",
        )
      if panel.log_x:
        axis.set_xscale("log")
        ticks = sorted({x for curve in panel.curves for x in curve.x})
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
        axis.minorticks_off()
      if panel.ticks:
        places = range(len(panel.ticks))
        axis.set_xticks(places, panel.ticks, rotation=30, ha="right")
      axis.set_title(panel.title)
      axis.set_xlabel(panel.x_label)
      axis.set_ylabel(panel.y_label)
      axis.grid(alpha=0.3)
      axis.legend(fontsize=6 if len(panel.curves) > 5 else "medium")
    figure.savefig(file, format="png", dpi=100)
    plt.close(figure)
