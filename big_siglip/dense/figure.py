"""A sheet of pictures in rows, with words above them, by Pillow.

Shape letters: H and W pixels.
"""

from collections.abc import Sequence
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from big_siglip.dense.matching import Matches
from big_siglip.dense.pictures import PALETTE
from big_siglip.errors import UserError

_GAP, _LINE = 8, 18  # Pixels between pictures, and of a line of words.
_BACK, _INK = (255, 255, 255), (30, 30, 30)


class Tile(NamedTuple):
  """A picture with a line above it.

  Attributes:
    pixels: uint8 [H, W, 3].
    words: one line; what is too long for the picture is cut.
    colour: of a square before the words; None: there is none.
  """

  pixels: np.ndarray
  words: str = ""
  colour: tuple[int, int, int] | None = None


def sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
  """Returns all tiles, row by row."""
  widths = [
    sum(tile.pixels.shape[1] + _GAP for tile in row) + _GAP for row in rows
  ]
  heights = [
    max(tile.pixels.shape[0] for tile in row) + _LINE + _GAP for row in rows
  ]
  page = Image.new("RGB", (max(widths), sum(heights) + _GAP), _BACK)
  draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
  top = _GAP
  for row, height in zip(rows, heights, strict=True):
    left = _GAP
    for tile in row:
      width = tile.pixels.shape[1]
      at = left
      if tile.colour is not None:
        draw.rectangle((left, top + 2, left + 11, top + 13), tile.colour)
        at += 16
      words = tile.words
      while words and draw.textlength(words, font) > left + width - at:
        words = f"{words.rstrip('.')[:-1]}..." if len(words) > 4 else ""
      draw.text((at, top), words, _INK, font)
      page.paste(Image.fromarray(tile.pixels), (left, top + _LINE))
      left += width + _GAP
    top += height
  return page


def matched(
  first: np.ndarray,
  second: np.ndarray,
  matches: Matches,
  grids: tuple[tuple[int, int], tuple[int, int]],
) -> Tile:
  """Returns two images side by side, a line from each patch to its match.

  Args:
    first: uint8 [H, W, 3].
    second: the same, of the same height.
    matches: between their patches.
    grids: (h, w) of each.
  """
  gap = np.full((len(first), _GAP, 3), 255, np.uint8)
  both = np.concatenate([first, gap, second], axis=1)
  page = Image.fromarray(both)
  draw = ImageDraw.Draw(page)
  shift = first.shape[1] + _GAP
  for number, (a, b) in enumerate(
    zip(matches.first.tolist(), matches.second.tolist(), strict=True)
  ):
    colour = tuple(PALETTE[number % len(PALETTE)].tolist())
    x0, y0 = _middle(a, grids[0], first.shape)
    x1, y1 = _middle(b, grids[1], second.shape)
    draw.line((x0, y0, x1 + shift, y1), colour, 2)
    for x, y in ((x0, y0), (x1 + shift, y1)):
      draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
  words = f"{len(matches.cosine)} patches, each the other's nearest"
  return Tile(np.asarray(page), words)


def _middle(at, grid: tuple[int, int], shape) -> tuple[float, float]:
  (row, column), (h, w) = at, grid
  return (column + 0.5) * shape[1] / w, (row + 0.5) * shape[0] / h


def save(page: Image.Image, path: str) -> None:
  """Writes a sheet in the format that the ending of its path names.

  Raises:
    UserError: it cannot be written there.
  """
  file = pathlib.Path(path).expanduser()
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file)
  except OSError as error:
    raise UserError(f"--output={path}: {error.strerror or error}") from error
  except ValueError as error:  # Pillow knows no such ending.
    raise UserError(
      f"--output={path}: must end in .png, .webp or .jpg"
    ) from error
