"""What is to be embedded: images or texts of files, or of a data set.

`read_images` and `read_texts` take a folder, a list, a table, or whatever
`data.sources` opens: tar shards, Parquet, ArrayRecord, TFDS.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib
from typing import NamedTuple, Protocol

import numpy as np

from big_siglip.data.images import BadImage
from big_siglip.data.sources import Source
from big_siglip.embeddings import datasets, tables
from big_siglip.errors import BadExample, UserError
from big_siglip.trained.inference import Model

_IMAGE_COLUMNS = ("image", "file_name", "filename", "path", "image_path")
_TEXT_COLUMNS = ("caption", "text", "captions", "texts", "sentence", "title")
_COMPARED = 64  # Examples of a data set that its fingerprint names.


class Prepared(NamedTuple):
  """One input as a tower sees it, or why it cannot.

  Attributes:
    key: what it is called.
    text: None of an image.
    array: [H, W, 3] uint8 or [L] int32; None where there is a problem.
    problem: why it cannot be embedded, or "".
  """

  key: str
  text: str | None
  array: np.ndarray | None
  problem: str = ""


class AnyInputs(Protocol):
  """Images or texts in a fixed order.

  Attributes:
    path: where they lie.
    data: the format of the data set that they are of (`sources.NAMES`), or "".
  """

  path: str | pathlib.Path
  data: str

  @property
  def kind(self) -> str:
    """What they are: "images" or "texts"."""

  def __len__(self) -> int: ...

  def fingerprint(self) -> str:
    """Returns a hash of what they are."""

  def prepare(self, model: Model, index: int) -> Prepared:
    """Returns one of them as a tower of the model sees it."""


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Images or texts of files, nothing of the images read yet; `AnyInputs`.

  Attributes:
    path: the folder of images, or the file that lists them or the texts.
    keys: paths of images, relative to the folder, or to that of the list; or
      numbers of lines.
    texts: one for each key; None: these are images.
    data: the format of the data set that texts are of, or "".
  """

  path: pathlib.Path
  keys: Sequence[str]
  texts: Sequence[str] | None = None
  data: str = ""

  @property
  def kind(self) -> str:
    """What they are: "images" or "texts"."""
    return "images" if self.texts is None else "texts"

  def __len__(self) -> int:
    return len(self.keys)

  def fingerprint(self) -> str:
    """Returns a hash of all keys and texts, in their order."""
    digest = hashlib.sha256()
    for values in (self.keys, self.texts or ()):
      for value in values:
        digest.update(value.encode("utf-8", "surrogateescape") + b"\n")
      digest.update(b"\0")
    return digest.hexdigest()

  def prepare(self, model: Model, index: int) -> Prepared:
    """Returns what a tower sees of one; an image is read and decoded."""
    key = self.keys[index]
    if self.texts is None:
      return self._prepare_image(model, key)
    text = self.texts[index]
    if not text.strip():
      return Prepared(key, text, None, "is empty")
    return Prepared(key, text, model.preprocess.texts([text])[0])

  def _prepare_image(self, model: Model, key: str) -> Prepared:
    folder = self.path if self.path.is_dir() else self.path.parent
    file = folder / key
    if not file.exists():  # Captions name images in images/ so, too.
      file = folder / "images" / key
    try:
      return Prepared(key, None, model.prepare_image(file))
    except OSError as error:  # Its own words hold the path again.
      return Prepared(key, None, None, error.strerror or str(error))
    except BadImage as error:
      return Prepared(key, None, None, str(error))


@dataclasses.dataclass(frozen=True)
class DataImages:
  """The images of a data set; `AnyInputs`. Their keys are the examples' names.

  Attributes:
    path: where it lies.
    data: its format, one of `sources.NAMES`.
    source: its examples.
  """

  path: str
  data: str
  source: Source
  kind = "images"

  def __len__(self) -> int:
    return len(self.source)

  def fingerprint(self) -> str:
    """Returns a hash of how many there are, and of the names of some."""
    some = np.linspace(0, len(self) - 1, min(_COMPARED, len(self))).astype(int)
    digest = hashlib.sha256(f"{self.data} {len(self)}\n".encode())
    for index in some.tolist():
      try:
        name = self.source[index].name
      except BadExample as error:
        name = str(error)
      digest.update(name.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()

  def prepare(self, model: Model, index: int) -> Prepared:
    """Returns what the tower sees of one, which is read and decoded."""
    name = f"{self.path}#{index}"
    try:
      example = self.source[index]
      name = example.name.encode(errors="replace").decode()
      return Prepared(name, None, model.prepare_image(example.image))
    except BadExample as error:
      return Prepared(error.name or name, None, None, str(error))


def read_images(
  path: str,
  column: str | None = None,
  data: str | None = None,
  split: str | None = None,
  flag: str = "--images",
) -> Inputs | DataImages:
  """Returns the images of a folder, with all in it, of a list or a data set.

  Args:
    path: a folder; or a text file with a path in each line; or a table (.csv,
      .tsv, .jsonl): an image that it names twice, as one with several captions,
      counts once; or a data set.
    column: of a table, or the field of a data set; None: found.
    data: the format of a data set, one of `sources.NAMES`; None: seen from the
      names of the files, if it is one.
    split: of a data set; None: all of it.
    flag: what messages call the path.

  Raises:
    UserError: there is no such folder, file or column, or there are no images.
  """
  if data or (data := datasets.find_format(path)):
    source = datasets.open_images(path, data, split, column, flag)
    return DataImages(path, data, source)
  _check_split(split)
  place = _existing(path, flag)
  if place.is_dir():
    tables.check_no_column(place, column)
    keys = datasets.find_images(place)
  else:
    rows = tables.read(place, column, _IMAGE_COLUMNS, flag)
    keys = [text.strip() for _, text in rows if text.strip()]
  keys = list(dict.fromkeys(keys))
  if not keys:
    raise UserError(f"{flag}={path}: holds no images")
  return Inputs(place, keys)


def read_texts(
  path: str,
  column: str | None = None,
  data: str | None = None,
  split: str | None = None,
) -> Inputs:
  """Returns the texts of a file or of a data set.

  Their keys are the numbers of their lines, or those of rows and examples from
  0 on: 7, and 7#1 for its second text.

  Args:
    path: a text file with a text in each line; a table (.csv, .tsv, .jsonl,
      .parquet), or a data set.
    column: of a table, or the field of a data set; None: found.
    data: the format of a data set; None: seen from the names of the files.
    split: of a data set; None: all of it.

  Raises:
    UserError: there is no such file or column, or there are no texts.
  """
  if data or (data := datasets.find_format(path, texts=True)):
    texts = datasets.read_texts(path, data, split, column)
    rows = [
      (f"{number}#{i}" if i else str(number), text)
      for number, found in enumerate(texts)
      for i, text in enumerate(found)
    ]
    place = pathlib.Path(path)
  else:
    _check_split(split)
    place = _existing(path, "--texts")
    rows = tables.read(place, column, _TEXT_COLUMNS, "--texts")
    rows = [(str(number), text) for number, text in rows]
  if not rows:
    raise UserError(f"--texts={path}: holds no texts")
  keys, found = zip(*rows, strict=True)
  return Inputs(place, keys, found, data or "")


def _existing(path: str, flag: str) -> pathlib.Path:
  place = pathlib.Path(path).expanduser().resolve()
  if not place.exists():
    raise UserError(f"{flag}={path}: no such file or folder")
  return place


def _check_split(split: str | None) -> None:
  if split is not None:
    raise UserError(f"--split={split}: only a data set has splits (--data)")
