"""The axes of a chart, and the elements of its picture."""

from collections.abc import Sequence
import math
from xml.etree import ElementTree

from big_siglip.report.runs import Point

# Of a picture, in its own units; the page scales it.
WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 28


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


class Axes:
  """Where values lie in the picture."""

  def __init__(self, points: Sequence[Point], *, share: bool, log: bool):
    """Chooses what the axes show.

    Args:
      points: of all curves, at least one.
      share: the values are shares, so that the axis starts at 0 and, unless all
        are small, ends at 1.
      log: the vertical axis may be logarithmic, if the values want it.
    """
    values = [value for _, value in points if value is not None]
    self._left, self._right = _range(0, max(x for x, _ in points))
    low, high = min(values, default=0.0), max(values, default=1.0)
    self._log = log and low > 0 and high > 100 * low
    if self._log:
      low, high = math.log10(low), math.log10(high)
    if share and 0 <= low <= high <= 1:
      self._low, self._high = 0.0, 1.2 * high if 0 < high <= 0.3 else 1.0
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
    return LEFT + across * (WIDTH - LEFT - RIGHT)

  def y(self, value: float) -> float:
    """Returns the distance from the upper edge."""
    value = math.log10(value) if self._log else value
    up = (value - self._low) / (self._high - self._low)
    return HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

  def draw(self, root: ElementTree.Element, x_label: str) -> None:
    """Draws grid, ticks and labels."""
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    marks = self._y_ticks()
    for value, text in zip(marks, tick_texts(marks), strict=True):
      y = self.y(value)
      add(root, "line", x1=left, x2=right, y1=y, y2=y, class_="grid")
      add(root, "text", text, x=left - 6, y=y + 4, class_="tick end")
    add(root, "line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")
    marks = ticks(self._left, self._right)
    for value, text in zip(marks, tick_texts(marks), strict=True):
      x = self.x(value)
      add(root, "line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis")
      if x < right - 12 * len(x_label):  # The axis's name stands there.
        place = {"x": x, "y": bottom + 17, "class_": "tick middle"}
        add(root, "text", text, **place)
    add(root, "text", x_label, x=right, y=bottom + 17, class_="tick end")

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


def _range(low: float, high: float) -> tuple[float, float]:
  """Widens a range of nothing."""
  if high > low:
    return low, high
  half = abs(low) / 10 or 0.5
  return low - half, high + half


def add(
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
