"""Images that an evaluation was about, and what was answered, on one sheet."""

from collections.abc import Callable
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
import numpy as np

from big_siglip.data import images
from big_siglip.data.sources import Source
from big_siglip.errors import BadExample
from big_siglip.evaluation import patch_pictures, pictures, rows
from big_siglip.evaluators import Result
from big_siglip.evaluators.result import Table

_COUNT, _COLUMNS = 16, 4
_SIDE = 160  # Pixels of an image.
_LETTERS = 34  # Of a line.
_RIGHT, _WRONG = "tab:green", "tab:red"


def sheet(
  open_source: Callable[[], Source], result: Result
) -> np.ndarray | None:
  """Returns a sheet of images, uint8 [H, W, 3]; None where there are none.

  Of a classification the first images that are wrong, under each the right
  class and the answer; of a retrieval the first images, under each the caption
  that came first, in green where it is one of the image's; of a decoder the
  first images, with what it wrote: captions, in green where they are one of the
  image's word for word, or the boxes of a text, dashed the true one. Of patches
  see `patch_pictures.sheet`.

  Args:
    open_source: the data that were evaluated.
    result: with rows.
  """
  if result.examples:
    figure = patch_pictures.sheet(open_source, result)
    return None if figure is None else pictures.as_array(figure)
  if result.rows is None:
    return None
  table = result.rows()
  cells = _cells(table)
  if not cells:
    return None
  shown = result.details.get("whole") and "found" in table
  source = open_source()
  if isinstance(source[cells[0][0]].image, np.ndarray):  # Embeddings.
    return None
  height = -(-len(cells) // _COLUMNS)
  figure = plt.figure(
    figsize=(2.2 * _COLUMNS, 2.4 * height), layout="constrained"
  )
  grid = figure.subplots(height, _COLUMNS, squeeze=False)
  for axes in grid.flat:
    axes.axis("off")
  for i, (axes, (row, text, color)) in enumerate(
    zip(grid.flat, cells, strict=False)
  ):
    axes.set_title(text, fontsize=7, color=color)
    try:
      image = images.thumbnail(source[row].image, _SIDE)
    except BadExample:  # It was read a moment ago.
      continue
    axes.imshow(image)
    if shown:
      _draw_box(axes, image, table["box"][i], "white", "--")
      _draw_box(axes, image, table["found"][i], color, "-")
  return pictures.as_array(figure)


def _cells(table: Table) -> list[tuple[int, str, str]]:
  """Returns (number of the image, text, its colour) of each to be shown."""
  if rows.is_retrieval(table):
    asked = [i for i, w in enumerate(table["way"]) if w == "image_to_text"]
    return [
      (
        table["row"][i],
        _lines(table["first"][i]),
        _RIGHT if table["right@1"][i] else _WRONG,
      )
      for i in asked[:_COUNT]
    ]
  if "captions" in table:
    return [
      (row, _lines(text), _RIGHT if exact else "black")
      for row, text, exact in _firsts(table, "row", "written", "exact")
    ]
  if "found" in table:
    return [
      (row, _lines(text), _RIGHT if iou >= 0.5 else _WRONG)
      for row, text, iou in _firsts(table, "row", "text", "iou")
    ]
  right = table.get("right", [])  # None: it was left out.
  wrong = [i for i, r in enumerate(right) if r is not None and not r]
  return [
    (
      table["row"][i],
      f"{_lines(table['label'][i])}\n-> {_lines(table['predicted'][i])}",
      _WRONG,
    )
    for i in wrong[:_COUNT]
  ]


def _firsts(table: Table, *names: str) -> list[tuple[Any, ...]]:
  """Returns some columns of the first rows."""
  columns = [table[name][:_COUNT] for name in names]
  return list(zip(*columns, strict=True))


def _draw_box(axes, image: np.ndarray, said: str | None, color: str, line):
  """Draws a box of a table on an image that is shown."""
  if not said:
    return
  height, width = image.shape[:2]
  top, left, bottom, right = map(float, said.split())
  axes.add_patch(
    Rectangle(
      (left * width - 0.5, top * height - 0.5),
      (right - left) * width,
      (bottom - top) * height,
      fill=False,
      edgecolor=color,
      linestyle=line,
      linewidth=1.2,
    )
  )


def _lines(text: str | None) -> str:
  """Returns a text in at most two lines."""
  text = " ".join(str(text or "nothing").split()).replace("$", r"\$")
  parts = [text[i : i + _LETTERS] for i in range(0, len(text), _LETTERS)]
  if len(parts) > 2:
    parts[1] = parts[1][:-3] + "..."
  return "\n".join(parts[:2])
