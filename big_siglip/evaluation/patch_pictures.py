"""Pictures of evaluations of patches: overlap of masks, and points found again.

Shape letters: H and W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # Draws into files; needs no screen.

from matplotlib import patches as shapes
from matplotlib import pyplot as plt
import numpy as np

from big_siglip.data import images
from big_siglip.data.masks import IGNORED
from big_siglip.data.sources import Source
from big_siglip.dense.pictures import enlarged, in_colours, PALETTE
from big_siglip.errors import BadExample
from big_siglip.evaluators import Result
from big_siglip.evaluators.correspondence import WITHIN
from big_siglip.evaluators.result import MaskExample, MatchExample

_CLASSES = 40  # Bars; of more classes, the best and the worst.
_SIDE = 200  # Pixels of an image.
_LINES = 24  # Of a pair of images.
_MATCHES = 4  # Pairs of images.
_BASELINES = ("raw", "random", "position", "ceiling")


def chart(result: Result):
  """Returns a figure of an evaluation of patches; None of any other."""
  if "ceiling_iou" in result.details:
    return _overlap(result.details, result.metrics)
  if any("pck@" in metric for metric in result.metrics):
    return _found_again(result.metrics)
  return None


def _overlap(details: Mapping[str, Any], metrics: Mapping[str, float]):
  """Returns a figure: IoU and ceiling of each class, and the confusion."""
  iou = {k: v for k, v in details["iou"].items() if v is not None}
  names = sorted(iou, key=lambda name: iou[name], reverse=True)
  if left := max(len(names) - _CLASSES, 0):
    half = _CLASSES // 2
    names = names[:half] + names[-half:]
  matrix = details.get("confusion")
  height = max(4.5, 2.0 + 0.24 * len(names))
  figure = plt.figure(
    figsize=(11 if matrix else 6.5, height), layout="constrained"
  )
  bars = figure.add_subplot(1, 2 if matrix else 1, 1)
  places = np.arange(len(names))
  ceiling = [details["ceiling_iou"].get(name) or 0.0 for name in names]
  label = f"best that such patches can do: mIoU {metrics['ceiling_miou']:.3f}"
  bars.barh(places, ceiling, color="tab:gray", alpha=0.3, label=label)
  own = [iou[name] for name in names]
  label = f"this model: mIoU {metrics['miou']:.3f}"
  bars.barh(places, own, 0.5, color="tab:blue", label=label)
  for name, color in (("raw", "tab:orange"), ("random", "tab:red")):
    if f"{name}_miou" in metrics:
      value = metrics[f"{name}_miou"]
      what = "pixels alone" if name == "raw" else "random tower"
      label = f"{what}: mIoU {value:.3f}"
      bars.axvline(value, color=color, linestyle=":", label=label)
  bars.set_yticks(places, [name[:_CLASSES] for name in names])
  bars.invert_yaxis()
  bars.set_xlim(0, 1)
  bars.set_xlabel(
    f"IoU ({left} classes between them left out)" if left else "IoU"
  )
  figure.legend(loc="outside lower left", fontsize=8, ncols=2)
  if matrix:
    _confusion(figure, details["names"], np.array(matrix, float))
  return figure


def _confusion(figure, names: Sequence[str], matrix: np.ndarray) -> None:
  share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  axes = figure.add_subplot(1, 2, 2)
  shown = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
  figure.colorbar(shown, label="share of true pixels")
  axes.set_xlabel("predicted")
  axes.set_ylabel("true")
  if len(names) <= 30:
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)


def _found_again(metrics: Mapping[str, float]):
  """Returns a figure: PCK of the model and of what it is compared with."""
  ways = [("this model", "")]
  ways += [
    (name, f"{name}_")
    for name in _BASELINES
    if f"{name}_pck@{WITHIN[0]}" in metrics
  ]
  figure = plt.figure(figsize=(7, 4), layout="constrained")
  axes = figure.add_subplot()
  for number, share in enumerate(WITHIN):
    values = [metrics[f"{prefix}pck@{share}"] for _, prefix in ways]
    places = np.arange(len(ways)) + 0.4 * number - 0.2
    label = f"within {share:g} of the side"
    axes.bar_label(axes.bar(places, values, 0.4, label=label), fmt="%.3f")
  axes.set_xticks(range(len(ways)), [name for name, _ in ways])
  axes.set_ylim(0, 1.12)
  axes.set_ylabel("share of patches found again (PCK)")
  axes.legend()
  return figure


def sheet(open_source: Callable[[], Source], result: Result):
  """Returns a figure of a result's examples; None where there are none.

  Of masks: image, true and predicted. Of points: an image and a crop of it, a
  line from each patch of the crop to the most similar one of the image, green
  where that is right.
  """
  if not result.examples:
    return None
  if isinstance(result.examples[0], MatchExample):
    return _matches(result.examples[:_MATCHES])
  return _masks(open_source(), result)


def _masks(source: Source, result: Result):
  examples, details = result.examples, result.details
  names = list(details["names"])
  # Of evaluations that do not say, by its name.
  background = details.get("background", "background")
  columns = 2 if len(examples) > 1 else 1
  height = -(-len(examples) // columns)
  figure = plt.figure(
    figsize=(5.6 * columns, 2.1 * height + 0.6), layout="constrained"
  )
  grid = figure.subplots(height, 3 * columns, squeeze=False)
  for axes in grid.flat:
    axes.axis("off")
  seen: set[int] = set()
  for place, example in enumerate(examples):
    row, column = divmod(place, columns)
    drawn = _mask_tiles(source, example, names, background)
    if drawn is None:
      continue
    tiles, labels = drawn
    seen |= labels
    titles = (source[example.number].name, "true", "predicted")
    for axes, pixels, title in zip(
      grid[row, 3 * column :], tiles, titles, strict=False
    ):
      axes.imshow(pixels)
      axes.set_title(title[-34:].replace("$", r"\$"), fontsize=7)
  figure.legend(
    handles=[
      shapes.Patch(color=PALETTE[c % len(PALETTE)] / 255, label=names[c][:30])
      for c in sorted(seen)
    ],
    loc="outside lower center",
    fontsize=7,
    ncols=6,
  )
  return figure


def _mask_tiles(
  source: Source,
  example: MaskExample,
  names: Sequence[str],
  background: str | None,
) -> tuple[list[np.ndarray], set[int]] | None:
  """Returns image, true and predicted, and the classes that are seen.

  None where the image is gone.
  """
  try:
    image = source[example.number].image
    if isinstance(image, np.ndarray):
      return None
    shown = images.thumbnail(image, _SIDE)
  except BadExample:  # It was read a moment ago.
    return None
  tiles, seen = [shown], set()
  for mask in (example.true, example.predicted):
    labels = enlarged(mask, *shown.shape[:2]).astype(int)
    labels[labels == IGNORED] = -1
    if background in names:
      labels[labels == names.index(background)] = -1
    tiles.append(in_colours(shown, labels))
    seen |= set(np.unique(labels[labels >= 0]).tolist())
  return tiles, seen


def _matches(examples: Sequence[MatchExample]):
  figure = plt.figure(figsize=(6, 3.2 * len(examples)), layout="constrained")
  grid = figure.subplots(len(examples), 1, squeeze=False)
  for axes, example in zip(grid.flat, examples, strict=True):
    side = len(example.whole)
    gap = np.full((side, side // 16 + 1, 3), 255, np.uint8)
    both = np.concatenate([example.whole, gap, example.crop], axis=1)
    shift = side + gap.shape[1]
    axes.imshow(both)
    axes.axis("off")
    chosen = np.linspace(
      0, len(example.points) - 1, min(_LINES, len(example.points))
    ).astype(int)
    error = np.linalg.norm(example.found - example.truth, axis=1)
    for place in chosen:
      right = error[place] <= WITHIN[0]
      (y0, x0), (y1, x1) = example.found[place], example.points[place]
      axes.plot(
        [x0 * side, x1 * side + shift],
        [y0 * side, y1 * side],
        color="limegreen" if right else "red",
        linewidth=0.8,
        marker=".",
        markersize=3,
      )
    share = (error <= WITHIN[0]).mean()
    axes.set_title(
      f"image {example.number}: {share:.0%} within {WITHIN[0]:g} of the side",
      fontsize=8,
    )
  return figure
