"""Line charts as inline SVG; page.js adds the read-out under the pointer."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from big_siglip.report.runs import Point

WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 28
_MAX_POINTS = 300  # Of a curve; more cannot be told apart.
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
  def kept(self) -> list[Curve]:
    """The curves with no more points than can be told apart."""
    return [
      dataclasses.replace(curve, points=thin(curve.points))
      for curve in self.curves
    ]

  def data(self) -> dict[str, Any]:
    """Returns what page.js needs to know."""
    axes = _Axes(self)
    return {
      "x": self.x_label,
      "curves": [
        {
          "run": curve.run,
          "label": curve.label,
          "points": [
            [x, value, round(axes.x(x), 1), round(axes.y(value), 1)]
            for x, value in curve.points
            if value is not None
          ],
        }
        for curve in self.kept
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
    axes = _Axes(self)
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
    for curve in self.kept:
      _draw_curve(root, curve, axes)
    # It escapes what has to be; nothing in it is anybody else's markup.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def thin(points: Sequence[Point], most: int = _MAX_POINTS) -> list[Point]:
  """Returns the points, or the extremes of each stretch if they are many.

  The first and the last point stay, and so do those that are not finite.
  """
  if len(points) <= most:
    return list(points)
  kept = {0, len(points) - 1}
  stretch = math.ceil(2 * len(points) / most)
  for start in range(0, len(points), stretch):
    numbers = range(start, min(start + stretch, len(points)))
    finite = [i for i in numbers if points[i][1] is not None]
    kept |= set(numbers[:1]) if not finite else set()
    if finite:
      kept.add(min(finite, key=lambda i: points[i][1]))
      kept.add(max(finite, key=lambda i: points[i][1]))
      if len(finite) < len(numbers):
        kept.add(next(i for i in numbers if points[i][1] is None))
  return [points[i] for i in sorted(kept)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Returns at most `count` + 1 round numbers in [low, high]."""
  power = 10.0 ** math.floor(math.log10((high - low) / count))
  step = next(
    power * factor
    for factor in (1, 2, 5, 10, 20)
    if high - low <= power * factor * count
  )
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [number * step for number in range(first, last + 1)]


class _Axes:
  """Where values lie in the picture."""

  def __init__(self, chart: Chart):
    points = [point for curve in chart.curves for point in curve.points]
    values = [value for _, value in points if value is not None]
    self._left, self._right = _range(0, max(x for x, _ in points))
    low, high = min(values, default=0.0), max(values, default=1.0)
    self._log = chart.log and low > 0 and high > 100 * low
    if self._log:
      low, high = math.log10(low), math.log10(high)
    if chart.share and low >= 0 and 0 < high <= 1:
      self._low, self._high = 0.0, 1.0 if high > 0.3 else 1.2 * high
    else:
      low, high = _range(low, high)
      margin = 0.04 * (high - low)
      # Nothing that is never below zero gets an axis that is.
      positive = low >= 0 and not self._log
      self._low = max(low - margin, 0.0) if positive else low - margin
      self._high = high + margin

  def x(self, x: float) -> float:
    """Returns the distance from the left edge, in units of the picture."""
    across = (x - self._left) / (self._right - self._left)
    return _LEFT + across * (WIDTH - _LEFT - _RIGHT)

  def y(self, value: float) -> float:
    """Returns the distance from the upper edge."""
    value = math.log10(value) if self._log else value
    up = (value - self._low) / (self._high - self._low)
    return HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

  def draw(self, root: ElementTree.Element, x_label: str) -> None:
    """Draws grid, ticks and labels."""
    left, right, bottom = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM
    marks = self._y_ticks()
    for value, text in zip(marks, tick_texts(marks), strict=True):
      y = self.y(value)
      _add(root, "line", x1=left, x2=right, y1=y, y2=y, class_="grid")
      _add(root, "text", text, x=left - 6, y=y + 4, class_="tick end")
    _add(root, "line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")
    marks = ticks(self._left, self._right)
    for value, text in zip(marks, tick_texts(marks), strict=True):
      x = self.x(value)
      _add(root, "line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis")
      if x < right - 12 * len(x_label):  # The axis's name stands there.
        place = {"x": x, "y": bottom + 17, "class_": "tick middle"}
        _add(root, "text", text, **place)
    _add(root, "text", x_label, x=right, y=bottom + 17, class_="tick end")

  def _y_ticks(self) -> list[float]:
    if not self._log:
      return ticks(self._low, self._high)
    powers = range(math.ceil(self._low), math.floor(self._high) + 1)
    return [10.0**power for power in powers]


def tick_texts(values: Sequence[float]) -> list[str]:
  """Returns 1.5k, 0.02, 3e-05, with as few digits as tell them apart."""
  texts = []
  for digits in range(3, 10):
    texts = [_short(value, digits) for value in values]
    if len(set(texts)) == len(texts):
      break
  return texts


def _short(value: float, digits: int) -> str:
  for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:.{digits}g}{letter}"
  return f"{value:.{digits}g}" if abs(value) > 1e-12 else "0"


def _draw_curve(root: ElementTree.Element, curve: Curve, axes: _Axes) -> None:
  dash = _DASHES[curve.dash % len(_DASHES)]
  for segment in _segments(curve.points):
    places = [(axes.x(x), axes.y(value)) for x, value in segment]
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = {"class_": f"curve run{curve.run}", "stroke_dasharray": dash}
    _add(root, "polyline", points=text, **style)
    if len(places) == 1 or (len(curve.points) <= _MARKED and not dash):
      for x, y in places:
        _add(root, "circle", cx=x, cy=y, r=2.4, class_=f"dot run{curve.run}")
  for x, value in curve.points:
    if value is None:  # A cross at the upper edge.
      place = {"x": axes.x(x), "y": _TOP + 4}
      _add(root, "text", "×", class_=f"bad run{curve.run}", **place)


def _segments(points: Sequence[Point]) -> list[list[tuple[int, float]]]:
  """Returns the stretches without a gap."""
  segments = [[]]
  for x, value in points:
    if value is None:
      segments.append([])
    else:
      segments[-1].append((x, value))
  return [segment for segment in segments if segment]


def _range(low: float, high: float) -> tuple[float, float]:
  """Widens a range of nothing."""
  if high > low:
    return low, high
  half = abs(low) / 10 or 0.5
  return low - half, high + half


def _add(
  root: ElementTree.Element, tag: str, text: str = "", **attributes: str | float
) -> None:
  """Adds an element; "_" in a name stands for "-", "class_" for "class"."""
  named = {
    key.rstrip("_").replace("_", "-"): str(
      value if isinstance(value, str) else round(value, 1)
    )
    for key, value in attributes.items()
    if value != ""
  }
  ElementTree.SubElement(root, tag, named).text = text or None
