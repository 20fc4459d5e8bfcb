"""Outlines of the shapes of `scenes`, and which pixels lie in them."""

import math

import numpy as np


def outline(
  shape: str, radius: float, centre: tuple[float, float]
) -> list[tuple[float, float]]:
  """Returns the corners of a shape, (x, y) in pixels."""
  if shape == "circle":
    unit = _around(40, (1.0,))
  elif shape == "square":
    unit = [(-0.87, -0.87), (0.87, -0.87), (0.87, 0.87), (-0.87, 0.87)]
  elif shape == "triangle":
    unit = [(0, -1), (1, 0.85), (-1, 0.85)]
  elif shape == "star":
    unit = _around(10, (1.05, 0.42))
  else:
    a, b = 1.0, 0.33
    unit = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b)]
    unit += [(-x, -y) for x, y in unit]
  return [(centre[0] + radius * x, centre[1] + radius * y) for x, y in unit]


def fill(mask: np.ndarray, outline: np.ndarray, value: int) -> None:
  """Writes a value to the pixels whose middle lies in an outline.

  By the even-odd rule: a ray to the right crosses the outline an odd number of
  times.

  Args:
    mask: uint8 [height, width].
    outline: [corners, 2], (x, y) in pixels.
    value: to write.
  """
  left, top = np.maximum(np.floor(outline.min(axis=0)).astype(int), 0)
  right, bottom = np.ceil(outline.max(axis=0)).astype(int)
  part = mask[top:bottom, left:right]
  y = (np.arange(len(part)) + top + 0.5)[:, None]
  x = (np.arange(part.shape[1]) + left + 0.5)[None, :]
  x0, y0 = outline.T[:, :, None, None]
  x1, y1 = np.concatenate((outline[1:], outline[:1])).T[:, :, None, None]
  between = (y0 <= y) != (y1 <= y)  # So y0 is not y1.
  slope = (x1 - x0) / np.where(y0 == y1, 1, y1 - y0)
  crossings = between & (x < x0 + (y - y0) * slope)
  part[np.bitwise_xor.reduce(crossings, axis=0)] = value


def _around(count: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
  """Returns `count` corners around the origin, the first at the top."""
  corners = []
  for i in range(count):
    angle = 2 * math.pi * i / count
    radius = radii[i % len(radii)]
    corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
  return corners
