"""A folder of embeddings, searched and shown."""

import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from big_siglip import embeddings
from big_siglip.data.images import BadImage
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings.search import search_exactly
from big_siglip.page.limits import decode, Limits
from big_siglip.trained.inference import Model

_SIDE = 320  # Pixels of a thumbnail.


class Gallery:
  """What big-siglip embed made, and the images that it was made of."""

  def __init__(
    self, folder: pathlib.Path, model: Model, checkpoint: str, limits: Limits
  ):
    """Opens the folder; shards that come later are not seen.

    Args:
      folder: of embeddings.
      model: must be the one that made them.
      checkpoint: what it was loaded from.
      limits: of the images that are shown.

    Raises:
      UserError: the folder holds no embeddings, or those of another model.
    """
    self._reader = embeddings.Reader(folder)
    made = embeddings.describe_model(model, checkpoint)
    descriptions.check_model(folder, self._reader.description, made)
    self._limits = limits
    # Pictures are shown of files alone, and not of those within shards.
    self._has_files = not self._reader.description.data
    inputs = pathlib.Path(self._reader.description.inputs)
    self._root = (inputs if inputs.is_dir() else inputs.parent).resolve()

  @property
  def kind(self) -> str:
    """What can be found: "images" or "texts"."""
    return self._reader.description.kind

  @property
  def has_pictures(self) -> bool:
    """Whether what is found can be shown."""
    return self.kind == "images" and self._has_files

  @property
  def num_rows(self) -> int:
    """How many can be found."""
    return self._reader.num_rows

  def search(self, query: np.ndarray, top: int) -> list[dict[str, Any]]:
    """Returns the nearest rows, the best first.

    Args:
      query: [1, E], E the embedding's width.
      top: rows to return at most.
    """
    # Always as many: each other number is another program to compile.
    scores, numbers = search_exactly(self._reader, query, self._limits.results)
    found = numbers[0, :top].tolist()
    rows = self._reader.rows(found)
    return [
      {"number": number, "key": key, "text": text, "score": float(score)}
      for number, (key, text), score in zip(
        found, rows, scores[0, :top], strict=True
      )
    ]

  def thumbnail(self, number: int) -> bytes | None:
    """Returns a small JPEG of an image, None where there is none to show.

    Images are asked for by their row: no request names a file. A file that the
    row names is shown if it lies in the folder that was embedded, wherever
    links and dots may lead, and only as an image of few pixels.

    Args:
      number: of its row.
    """
    if not self.has_pictures or not 0 <= number < self.num_rows:
      return None
    file = self._find(self._reader.rows([number])[0][0])
    if file is None:
      return None
    try:
      if file.stat().st_size > self._limits.shown_bytes:
        return None
      image = Image.fromarray(decode(file.read_bytes(), self._limits))
    except (BadImage, OSError):
      return None
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()

  def _find(self, key: str) -> pathlib.Path | None:
    for folder in (self._root, self._root / "images"):  # As big-siglip embed.
      try:
        file = (folder / key).resolve()
        if file.is_relative_to(self._root) and file.is_file():
          return file
      except (OSError, ValueError, RuntimeError):  # No name, or links in rings.
        continue
    return None
