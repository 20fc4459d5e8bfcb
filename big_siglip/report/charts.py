"""Line charts as inline SVG; page.js adds the read-out under the pointer."""

from collections.abc import Iterable, Sequence
import dataclasses
import math
from typing import Any, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

from big_siglip.report.axes import add, Axes, HEIGHT, TOP, WIDTH
from big_siglip.report.runs import Point

_MAX_STRETCHES = 200  # Of a curve; more cannot be told apart.
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_MARKED = 40  # Curves of fewer points show each.


@dataclasses.dataclass(frozen=True)
class Curve:
  """One line of a chart.

  Attributes:
    run: number of the run, which is its colour.
    label: what it is, where a chart shows several things; else "".
    dash: number of its dash pattern.
    points: x, value; None where it was not finite.
  """

  run: int
  label: str
  dash: int
  points: Sequence[Point]


@dataclasses.dataclass(frozen=True)
class Chart:
  """A picture of some curves.

  Attributes:
    title: what the y axis shows.
    curves: at least one point among them.
    x_label: what the x axis shows.
    share: whether the values are shares, so that the axis starts at 0 and,
      unless all are small, ends at 1.
    log: whether the axis may be logarithmic, if the values want it.
  """

  title: str
  curves: Sequence[Curve]
  x_label: str = "step"
  share: bool = False
  log: bool = False

  @property
  def labels(self) -> list[tuple[str, str]]:
    """The (label, dash pattern) of what is shown, where it is several."""
    dashes = {c.label: _DASHES[c.dash % len(_DASHES)] for c in self.curves}
    return list(dashes.items()) if len(dashes) > 1 else []

  @property
  def axes(self) -> Axes:
    """Where values lie in the picture."""
    points = [point for curve in self.curves for point in curve.points]
    return Axes(points, share=self.share, log=self.log)

  @property
  def is_long(self) -> bool:
    """Whether a curve has more points than can be told apart."""
    return any(len(curve.points) > _MAX_STRETCHES for curve in self.curves)

  def data(self) -> dict[str, Any]:
    """Returns what page.js needs to know."""
    axes = self.axes
    return {
      "x": self.x_label,
      "curves": [
        {
          "run": curve.run,
          "label": curve.label,
          "points": [
            [
              part.x,
              part.mean,
              round(axes.x(part.x), 1),
              round(axes.y(part.mean), 1),
            ]
            for part in stretches(curve.points)
            if part.mean is not None
          ],
        }
        for curve in self.curves
      ],
    }

  def describe(self, runs: Sequence[str]) -> str:
    """Returns what the chart shows in a sentence, for those who cannot see."""
    parts = []
    for curve in self.curves:
      values = [(x, v) for x, v in curve.points if v is not None]
      name = " ".join(filter(None, (runs[curve.run], curve.label)))
      if values:
        parts.append(
          f"{name}: {values[0][1]:.4g} at {values[0][0]:,} to "
          f"{values[-1][1]:.4g} at {values[-1][0]:,}"
        )
    return f"{self.title} by {self.x_label}. " + "; ".join(parts)

  def svg(self, runs: Sequence[str]) -> Markup:
    """Returns the picture; `runs` are the names of the runs."""
    axes = self.axes
    root = ElementTree.Element(
      "svg",
      {
        "viewBox": f"0 0 {WIDTH} {HEIGHT}",
        "role": "img",
        "tabindex": "0",
        "aria-label": self.describe(runs),
      },
    )
    axes.draw(root, self.x_label)
    for curve in self.curves:
      _draw_curve(root, curve, axes)
    # It escapes what has to be; nothing in it is anybody else's markup.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


class Stretch(NamedTuple):
  """Some neighbouring points of a curve, or a single one.

  Attributes:
    x: the place of the middle one.
    mean: of those that are finite; None if none is.
    low: the lowest of them.
    high: the highest of them.
    whole: whether all of them are finite.
  """

  x: float
  mean: float | None
  low: float
  high: float
  whole: bool


def stretches(
  points: Sequence[Point], most: int = _MAX_STRETCHES
) -> list[Stretch]:
  """Returns the points, in at most `most` stretches."""
  size = max(math.ceil(len(points) / most), 1)
  made = []
  for start in range(0, len(points), size):
    part = points[start : start + size]
    values = [value for _, value in part if value is not None]
    mean = sum(values) / len(values) if values else None
    made.append(
      Stretch(
        x=part[len(part) // 2][0],
        mean=mean,
        low=min(values, default=0.0),
        high=max(values, default=0.0),
        whole=len(values) == len(part),
      )
    )
  return made


def _draw_curve(root: ElementTree.Element, curve: Curve, axes: Axes) -> None:
  """Draws means as a line, and as a band where they lie between."""
  dash = _DASHES[curve.dash % len(_DASHES)]
  parts = stretches(curve.points)
  for segment in _segments(parts):
    xs = [axes.x(part.x) for part in segment]
    line = list(zip(xs, [axes.y(part.mean) for part in segment], strict=True))
    if len(parts) < len(curve.points):
      high = zip(xs, [axes.y(part.high) for part in segment], strict=True)
      low = zip(xs, [axes.y(part.low) for part in segment], strict=True)
      around = _place([*high, *reversed(list(low))])
      add(root, "polygon", points=around, class_=f"band run{curve.run}")
    style = {"class_": f"curve run{curve.run}", "stroke_dasharray": dash}
    add(root, "polyline", points=_place(line), **style)
    if len(line) == 1 or (len(parts) <= _MARKED and not dash):
      for x, y in line:
        add(root, "circle", cx=x, cy=y, r=2.4, class_=f"dot run{curve.run}")
  for part in parts:
    if not part.whole:  # A cross at the upper edge.
      place = {"x": axes.x(part.x), "y": TOP + 4}
      add(root, "text", "×", class_=f"bad run{curve.run}", **place)


def _place(points: Iterable[tuple[float, float]]) -> str:
  return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _segments(parts: Sequence[Stretch]) -> list[list[Stretch]]:
  """Returns those without a gap between them."""
  segments = [[]]
  for part in parts:
    if part.mean is None:
      segments.append([])
    else:
      segments[-1].append(part)
  return [segment for segment in segments if segment]
