"""A folder of embeddings, searched and shown."""

from collections.abc import Mapping, Sequence
import io
import pathlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from big_siglip import embeddings, progress
from big_siglip.data.images import BadImage
from big_siglip.data.sources.example import Options
from big_siglip.data.sources.folder import read_folder
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings.index import Choice, Index, open_index
from big_siglip.errors import naming, UserError
from big_siglip.page.limits import decode, Limits
from big_siglip.trained.inference import Model

_SIDE = 320  # Pixels of a thumbnail.
_CAPTIONS = 5  # Shown of an image.
# Columns of a row that are shown as its captions, if it has no others.
_TEXTS = ("caption", "captions", "sentence", "title", "label")
_OWN = ("id", "key", "text")


class _Opened(NamedTuple):
  """The folder as it was when it was opened."""

  reader: embeddings.Reader
  index: Index


class Gallery:
  """What big-siglip embed made, and the images that it was made of."""

  def __init__(
    self,
    folder: pathlib.Path,
    model: Model,
    checkpoint: str,
    limits: Limits,
    index: Choice | None = None,
  ):
    """Opens the folder; after an update it is opened again.

    Args:
      folder: of embeddings.
      model: must be the one that made them.
      checkpoint: what it was loaded from.
      limits: of the images that are shown.
      index: how it is searched; None: exactly.

    Raises:
      UserError: the folder holds no embeddings, or those of another model;
        there is no such index, its package is missing, or its database.
    """
    self._folder, self._limits = folder, limits
    self._choice = index or Choice()
    self._opened = self._open()
    description = self._opened.reader.description
    made = embeddings.describe_model(model, checkpoint)
    descriptions.check_model(folder, description, made)
    # Pictures are shown of files alone, and not of those within shards.
    self._has_files = not description.data
    inputs = pathlib.Path(description.inputs)
    self._root = (inputs if inputs.is_dir() else inputs.parent).resolve()
    self._captions: Mapping[str, Sequence[str]] = {}
    if self.has_pictures and inputs.is_dir():
      self._captions = _read_captions(inputs)

  def _open(self) -> _Opened:
    reader = embeddings.Reader(self._folder)
    return _Opened(reader, open_index(reader, self._choice, progress.say))

  def _current(self) -> _Opened:
    if not self._opened.reader.is_current:
      self._opened = self._open()
    return self._opened

  @property
  def kind(self) -> str:
    """What can be found: "images" or "texts"."""
    return self._opened.reader.description.kind

  @property
  def has_pictures(self) -> bool:
    """Whether what is found can be shown."""
    return self.kind == "images" and self._has_files

  @property
  def num_rows(self) -> int:
    """How many can be found."""
    return self._opened.reader.num_rows

  @property
  def index(self) -> str:
    """How it is searched."""
    return self._choice.name

  @property
  def columns(self) -> dict[str, str]:
    """What a filter may ask of: {name: its type}."""
    schema = self._opened.reader.schema
    return {
      one.name: str(one.type) for one in schema if one.name != "embedding"
    }

  def find(self, ids: Sequence[int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Returns embeddings NE float32 and what is known of rows, by their ids.

    Raises:
      UserError: there is no such row.
    """
    reader = self._current().reader
    numbers = reader.numbers_of(np.array(ids, np.int64))
    if (numbers < 0).any():
      raise UserError(f"like={ids[int(np.argmin(numbers))]}: no such result")
    rows = numbers.tolist()
    return reader.embeddings(rows), self._shown(rows)

  def search(
    self,
    queries: np.ndarray,
    top: int,
    where: str | None = None,
    without: Sequence[int] = (),
  ) -> list[list[dict[str, Any]]]:
    """Returns the nearest rows of each query, the best first.

    Args:
      queries: QE float32 of length 1.
      top: rows to return of each at most.
      where: only rows of which this is true.
      without: ids of rows to leave out.

    Raises:
      UserError: the filter is no good, or nothing can be found.
    """
    reader, index = self._current()
    # Always as many results, and few numbers of queries: each other one is
    # another program to compile.
    padded = 1 << (len(queries) - 1).bit_length()
    asked = np.pad(queries, [(0, padded - len(queries)), (0, 0)], "edge")
    with naming({"--where": "where"}):
      scores, numbers = index.search(asked, self._limits.results, where)
    left_out = np.array(without, np.int64)
    answers = []
    for own, cosines in zip(numbers[: len(queries)], scores, strict=False):
      good = (own >= 0) & ~np.isin(reader.ids[own], left_out)
      rows = self._shown(own[good][:top].tolist())
      cosines = cosines[good].tolist()
      answers.append(
        [{**row, "score": s} for row, s in zip(rows, cosines, strict=False)]
      )
    return answers

  def _shown(self, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Returns what is known of rows: id, key, text, captions and columns."""
    reader = self._opened.reader
    ids = reader.ids[np.asarray(rows, np.int64)].tolist()
    return [
      self._describe(number, row)
      for number, row in zip(ids, reader.records(rows), strict=True)
    ]

  def _describe(self, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    key, text = row["key"], row["text"]
    columns = {k: _as_json(v) for k, v in row.items() if k not in _OWN}
    captions = list(self._captions.get(key, ()))
    if not captions:
      named = [text, *(columns.get(name) for name in _TEXTS)]
      captions = [one for one in named if one and isinstance(one, str)]
    found = {"id": number, "key": key, "text": text, "columns": columns}
    if self.kind == "images":
      found["captions"] = list(dict.fromkeys(captions))[:_CAPTIONS]
    if self.has_pictures:
      found["image"] = f"api/images/{number}"
    return found

  def thumbnail(self, number: int) -> bytes | None:
    """Returns a small JPEG of an image, None where there is none to show.

    Images are asked for by their row: no request names a file. A file that the
    row names is shown if it lies in the folder that was embedded, wherever
    links and dots may lead, and only as an image of few pixels.

    Args:
      number: the id of its row.
    """
    if not self.has_pictures or not 0 <= number < 2**62:
      return None
    reader = self._opened.reader
    (place,) = reader.numbers_of(np.array([number], np.int64)).tolist()
    if place < 0:
      return None
    file = self._find(reader.rows([place])[0][0])
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


def _as_json(value: Any) -> Any:
  if isinstance(value, float):
    return value if np.isfinite(value) else None
  return value if isinstance(value, str | int | None) else str(value)


def _read_captions(folder: pathlib.Path) -> dict[str, list[str]]:
  """Returns {image: its captions or its label} as far as a folder says them."""
  try:
    _, gathered = read_folder(str(folder), "all", Options(needs_texts=False))
  except (UserError, OSError):  # Images alone, or several tables.
    return {}
  columns = gathered.columns
  captions = {}
  for image, fields in gathered.images.items():
    texts = [fields.get(key) for key in (*columns.texts, columns.label) if key]
    texts = [[one] if isinstance(one, str) else one for one in texts if one]
    captions[image] = [
      text for own in texts if isinstance(own, list) for text in own
    ]
  return {image: list(dict.fromkeys(own)) for image, own in captions.items()}
