"""What is to be embedded: a folder or a list of images, or a file of texts."""

from collections.abc import Iterator, Sequence
import csv
import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from big_siglip.data.images import BadImage
from big_siglip.data.tables import allow_long_fields
from big_siglip.errors import UserError
from big_siglip.trained.inference import Model

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class BadInput(ValueError):
  """An image or text that cannot be embedded; its message says why."""


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Images or texts in a fixed order, nothing of the images read yet.

  Attributes:
    path: the folder of images, or the file that lists them or the texts.
    keys: paths of images, relative to the folder, or to that of the list; or
      numbers of lines.
    texts: one for each key; None: these are images.
  """

  path: pathlib.Path
  keys: Sequence[str]
  texts: Sequence[str] | None = None

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

  def prepare(self, model: Model, index: int) -> np.ndarray:
    """Returns what a tower sees of one: [H, W, 3] uint8 or [L] int32.

    Raises:
      BadInput: an image that cannot be read or decoded, or a text of nothing.
    """
    if self.texts is None:
      return self._prepare_image(model, self.keys[index])
    text = self.texts[index]
    if not text.strip():
      raise BadInput("is empty")
    return model.preprocess.texts([text])[0]

  def _prepare_image(self, model: Model, key: str) -> np.ndarray:
    folder = self.path if self.path.is_dir() else self.path.parent
    file = folder / key
    if not file.exists():  # Captions name images in images/ so, too.
      file = folder / "images" / key
    try:
      # Parquet's strings are UTF-8; a file's name may be any bytes.
      key.encode()
      return model.prepare_image(file)
    except UnicodeEncodeError as error:
      raise BadInput("its name is not UTF-8") from error
    except OSError as error:  # Its own words hold the path again.
      raise BadInput(error.strerror or str(error)) from error
    except BadImage as error:
      raise BadInput(str(error)) from error


def read_images(path: str, column: str | None = None) -> Inputs:
  """Returns the images of a folder, with all in it, or of a list.

  Args:
    path: a folder; or a text file with a path in each line; or a .csv file.
      An image that a list names twice, as one with several captions, counts
      once.
    column: of a .csv file; None: "image".

  Raises:
    UserError: there is no such folder, file or column, or there are no images.
  """
  place = _existing(path, "--images")
  if place.is_dir():
    _check_column(place, column)
    keys = sorted(_walk(place))
  else:
    rows = _read_file(place, column, "image", "--images")
    keys = [text.strip() for _, text in rows if text.strip()]
  keys = list(dict.fromkeys(keys))
  if not keys:
    raise UserError(f"--images={path}: holds no images")
  return Inputs(place, keys)


def read_texts(path: str, column: str | None = None) -> Inputs:
  """Returns the texts of a file, whose keys are the numbers of their lines.

  Args:
    path: a text file with a text in each line, or a .csv file.
    column: of a .csv file; None: "caption".

  Raises:
    UserError: there is no such file or column, or there are no texts.
  """
  place = _existing(path, "--texts")
  if place.is_dir():
    raise UserError(f"--texts={path}: is a folder, must be a file")
  rows = list(_read_file(place, column, "caption", "--texts"))
  if not rows:
    raise UserError(f"--texts={path}: holds no texts")
  keys, texts = zip(*rows, strict=True)
  return Inputs(place, [str(key) for key in keys], texts)


def _existing(path: str, flag: str) -> pathlib.Path:
  place = pathlib.Path(path).expanduser().resolve()
  if not place.exists():
    raise UserError(f"{flag}={path}: no such file or folder")
  return place


def _walk(folder: pathlib.Path) -> Iterator[str]:
  """Yields the images below a folder; pathlib's glob takes several times it."""
  for parent, _, names in os.walk(folder):
    below = pathlib.Path(parent).relative_to(folder)
    for name in names:
      if name.lower().endswith(_SUFFIXES):
        yield (below / name).as_posix()


def _read_file(
  file: pathlib.Path, column: str | None, default: str, flag: str
) -> Iterator[tuple[int, str]]:
  """Yields (number of the line, text)."""
  is_csv = file.suffix.lower() == ".csv"
  if not is_csv:
    _check_column(file, column)
  try:
    with file.open(encoding="utf-8-sig", newline="" if is_csv else None) as f:
      if is_csv:
        yield from _csv_column(csv.DictReader(f), file, column or default)
      else:
        # Not splitlines, which also splits at rare separators within a line.
        yield from ((i, line.rstrip("\n")) for i, line in enumerate(f, 1))
  except (UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"{flag}={file}: must be UTF-8 text ({error})") from error
  except OSError as error:
    raise UserError(f"{flag}={file}: {error.strerror}") from error


def _csv_column(
  rows: csv.DictReader, file: pathlib.Path, column: str
) -> Iterator[tuple[int, str]]:
  allow_long_fields()
  present = [name.strip() for name in rows.fieldnames or ()]
  rows.fieldnames = present
  if column not in present:
    raise UserError(
      f"{file}: has no column {column!r}; --column must be one of "
      f"{', '.join(present) or 'none'}"
    )
  for row in rows:
    yield rows.line_num, row[column] or ""


def _check_column(place: pathlib.Path, column: str | None) -> None:
  if column is not None:
    raise UserError(f"--column={column}: {place} is no .csv file")
