"""Numbers of patches as colours; numpy alone.

Shape letters: h x w the grid of patches, C numbers of a patch, H and W pixels,
T labels.
"""

from collections.abc import Sequence

import numpy as np

from big_siglip.evaluators.grids import unit

# A component's values between these percentiles span all of a colour.
_RANGE = (2.0, 98.0)
# From cold to hot, readable for the colour-blind: black, violet, orange, white.
_HEAT = np.array(
  [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]],
  np.float32,
)
# Of labels, in turn; far from each other and from black.
PALETTE = np.array(
  [
    *([230, 25, 75], [60, 180, 75], [255, 225, 25], [67, 99, 216]),
    *([245, 130, 49], [145, 30, 180], [70, 240, 240], [240, 50, 230]),
    *([188, 246, 12], [250, 190, 190], [0, 128, 128], [230, 190, 255]),
  ],
  np.uint8,
)


def components(grids: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Returns the first three principal components as red, green and blue.

  Of all patches of all images together, so that equal colours mean equal things
  in all of them. Patches are brought to length 1 first: a few of large norm
  would take the first component for themselves.

  Args:
    grids: hwC float32 of each image.

  Returns:
    uint8 hw3 of each.
  """
  rows = np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in grids])
  rows = unit(rows)
  rows = rows - rows.mean(axis=0)
  _, vectors = np.linalg.eigh(rows.T.astype(np.float64) @ rows)
  values = rows @ vectors[:, ::-1][:, :3]
  # A component has no sign of its own; the longer tail is made the bright one.
  values *= np.where((values**3).sum(axis=0) < 0, -1, 1)
  low, high = np.percentile(values, _RANGE, axis=0)
  colours = (values - low) / np.maximum(high - low, 1e-8)
  colours = (colours.clip(0, 1) * 255).round().astype(np.uint8)
  if colours.shape[1] < 3:  # Of less than three numbers.
    spare = 3 - colours.shape[1]
    colours = np.pad(colours, ((0, 0), (0, spare)), mode="edge")
  ends = np.cumsum([grid.shape[0] * grid.shape[1] for grid in grids])
  return [
    part.reshape(*grid.shape[:2], 3)
    for part, grid in zip(np.split(colours, ends[:-1]), grids, strict=True)
  ]


def heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
  """Returns colours uint8 ...3 of values: black at `low`, bright at `high`."""
  span = max(high - low, 1e-12)
  at = ((values - low) / span).clip(0, 1) * (len(_HEAT) - 1)
  first = np.minimum(at.astype(int), len(_HEAT) - 2)
  share = (at - first)[..., None]
  colours = _HEAT[first] * (1 - share) + _HEAT[first + 1] * share
  return colours.round().astype(np.uint8)


def over(image: np.ndarray, colours: np.ndarray, share: float) -> np.ndarray:
  """Returns an image under colours, uint8 [H, W, 3].

  Args:
    image: uint8 [H, W, 3].
    colours: uint8 [H, W, 3].
    share: of the colours, 0 to 1.
  """
  grey = image.mean(axis=-1, keepdims=True)
  mixed = (1 - share) * grey + share * colours.astype(np.float32)
  return mixed.round().astype(np.uint8)


def enlarged(cells: np.ndarray, height: int, width: int) -> np.ndarray:
  """Returns cells hw... as [height, width]...: edges of patches stay sharp."""
  rows = np.arange(height) * len(cells) // height
  columns = np.arange(width) * cells.shape[1] // width
  return cells[np.ix_(rows, columns)]


def labelled(probabilities: np.ndarray, threshold: float) -> np.ndarray:
  """Returns the number of each pixel's likeliest label; -1 below a threshold.

  Args:
    probabilities: HWT.
    threshold: in [0, 1].
  """
  best = probabilities.argmax(axis=-1)
  return np.where(probabilities.max(axis=-1) >= threshold, best, -1)


def in_colours(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns an image with the labels of its pixels in colours of `PALETTE`.

  Args:
    image: uint8 [H, W, 3].
    labels: integers [H, W]; -1: none, and the pixel stays dim.
  """
  colours = PALETTE[labels % len(PALETTE)]
  mixed = over(image, colours, 0.6)
  dim = (image * 0.4).astype(np.uint8)
  return np.where(labels[..., None] >= 0, mixed, dim)
