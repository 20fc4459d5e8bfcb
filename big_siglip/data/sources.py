"""Where examples come from: random access by index, nothing decoded yet."""

from collections.abc import Callable, Iterator
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds

from big_siglip.datasets import prepare
from big_siglip.errors import UserError

FOLDER_SPLITS = ("all", "train", "test")
_COLUMNS = ("image", "caption")


@dataclasses.dataclass(frozen=True)
class Example:
  """One image and all that is said of it."""

  image: bytes | np.ndarray  # Encoded (JPEG, PNG ...), or its embedding.
  texts: tuple[str, ...]  # At least one.
  name: str  # What logs call it.
  label: int | None = None  # An index into the source's `class_names`.


class Source(Protocol):
  """What `open_source` returns; may be pickled, so that workers can read it."""

  class_names: tuple[str, ...] | None

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


class PreparedSource:
  """One split of a data set that TFDS wrote as ArrayRecord.

  Attributes:
    class_names: what the labels mean; None for a data set without labels.
  """

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    # Undecoded: decoding would need TensorFlow.
    decoders = {"image": tfds.decode.SkipDecoding()}
    self._records = builder.as_data_source(split=split, decoders=decoders)
    features = builder.info.features
    self.class_names = None
    if "label" in features:
      self.class_names = tuple(features["label"].names)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):  # What ends a `for` over the source.
      raise IndexError(index)
    record = self._records[int(index)]
    return Example(
      image=record["image"],
      texts=tuple(text.decode() for text in record["captions"]),
      name=record["name"].decode(),
      label=int(record["label"]) if self.class_names else None,
    )


class FolderSource:
  """Images in a folder, with captions.csv or captions.jsonl beside them.

  The file has the columns (fields) image and caption, a row for each caption;
  an image may have several. Image paths are relative to the folder or to its
  sub-folder images/.

  Attributes:
    class_names: always None.
  """

  class_names = None

  def __init__(self, folder: str, split: str):
    """Reads the captions and looks whether every image is there.

    Raises:
      UserError: unknown split, missing folder, no or two caption files, a
        missing column, an incomplete row or one without its image, no rows.
    """
    if split not in FOLDER_SPLITS:
      allowed = ", ".join(FOLDER_SPLITS)
      raise UserError(f"split {split!r} of a folder: must be one of {allowed}")
    self._folder = pathlib.Path(folder).expanduser()

    def find(image: str) -> str | None:
      return _find_image(self._folder, image)

    captions = read_captions(self._folder, find)
    chosen = [i for i in captions if split in ("all", split_of(i))]
    if not chosen:
      raise UserError(
        f"config.data.path={str(folder)!r}: split {split!r} is empty, of"
        f" {len(captions)} images in all"
      )
    self._images = tuple(chosen)
    self._texts = tuple(tuple(captions[image]) for image in chosen)

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> Example:
    name = self._images[index]
    image = (self._folder / name).read_bytes()
    return Example(image=image, texts=self._texts[index], name=name)


def open_source(name: str, split: str, path: str | None = None) -> Source:
  """Opens one split of a data set, preparing it first where need be.

  Args:
    name: "digits", "scenes" or "scenes/COUNT" (the project's own), "folder", or
      "embeddings" (of tools/embed.py; see `embedded.EmbeddedSource`).
    split: "train" or "test"; for a folder also "all". A folder's test split is
      a tenth of its images, chosen by a hash of their names.
    path: the folder, or where the project's own data sets lie (None: a cache).

  Raises:
    UserError: one line that says what cannot be opened and why.
  """
  if name == "folder":
    if not path:
      raise UserError("config.data.path=None: must be the folder to read")
    return FolderSource(path, split)
  if name == "embeddings":
    from big_siglip.data import embedded  # Reads captions as this module does.

    return embedded.EmbeddedSource(path, split)
  if not prepare.is_known(name):
    allowed = ", ".join((*prepare.NAMES, "folder", "embeddings"))
    raise UserError(f"data set {name!r}: must be one of {allowed}")
  builder = prepare.prepare(name, path)
  if split not in builder.info.splits:
    allowed = ", ".join(builder.info.splits)
    raise UserError(f"split {split!r} of {name}: must be one of {allowed}")
  return PreparedSource(builder, split)


def split_of(image: str) -> str:
  """Returns "test" for a tenth of all names, "train" for the others."""
  digest = hashlib.sha256(image.encode()).digest()
  return "test" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"


def read_captions(
  folder: pathlib.Path, find_image: Callable[[str], str | None]
) -> dict[str, list[str]]:
  """Returns the captions of every image, in the order of their first rows.

  Args:
    folder: with captions.csv or captions.jsonl.
    find_image: an image as the file names it -> the name to call it by, or None
      if there is none.

  Raises:
    UserError: see `FolderSource`.
  """
  file = _find_caption_file(folder)
  read_rows = _csv_rows if file.suffix == ".csv" else _jsonl_rows
  captions, found, problems = {}, {}, []
  try:
    for where, image, caption, problem in read_rows(file):
      if not problem and image not in found:
        found[image] = find_image(image)
      if not problem and not found[image]:
        problem = f"no image {image!r} in {folder} or its images/"
      if problem:
        problems.append(f"{where}: {problem}")
      else:
        captions.setdefault(found[image], []).append(caption)
  except (UnicodeDecodeError, csv.Error) as e:
    raise UserError(f"{file}: must be UTF-8 text ({e})") from e
  if problems:
    count = f" ({len(problems)} bad rows in all)" if len(problems) > 1 else ""
    raise UserError(f"{file} {problems[0]}{count}")
  if not captions:
    raise UserError(f"{file}: has no rows, so the data set is empty")
  return captions


def _find_caption_file(folder: pathlib.Path) -> pathlib.Path:
  field = f"config.data.path={str(folder)!r}"
  if not folder.is_dir():
    raise UserError(f"{field}: no such folder")
  files = [folder / "captions.csv", folder / "captions.jsonl"]
  files = [file for file in files if file.is_file()]
  if len(files) != 1:
    problem = "holds both" if files else "must hold one of"
    raise UserError(f"{field}: {problem} captions.csv, captions.jsonl")
  return files[0]


def _find_image(folder: pathlib.Path, image: str) -> str | None:
  for candidate in (image, os.path.join("images", image)):
    if (folder / candidate).is_file():
      return pathlib.Path(candidate).as_posix()
  return None


_Row = tuple[str, str, str, str]  # Where it stands, image, caption, problem.


def _csv_rows(file: pathlib.Path) -> Iterator[_Row]:
  with file.open(newline="", encoding="utf-8-sig") as f:
    reader = csv.DictReader(f)
    present = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = present
    _check_columns(file, present)
    for row in reader:
      problem = ""
      if None in row:
        problem = "more fields than columns; quote captions that hold commas"
      yield _checked_row(reader.line_num, row, problem)


def _jsonl_rows(file: pathlib.Path) -> Iterator[_Row]:
  with file.open(encoding="utf-8-sig") as f:
    for number, line in enumerate(f, 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except json.JSONDecodeError:
        row = None
      if not isinstance(row, dict):
        yield _checked_row(number, {}, "is not a JSON object")
        continue
      if number == 1:
        _check_columns(file, list(row))
      yield _checked_row(number, row, "")


def _check_columns(file: pathlib.Path, present: list[str]) -> None:
  missing = [column for column in _COLUMNS if column not in present]
  if missing:
    raise UserError(
      f"{file}: missing column {', '.join(missing)}; it has:"
      f" {', '.join(present) or 'none'}"
    )


def _checked_row(number: int, row: dict, problem: str) -> _Row:
  image, caption = (row.get(column) for column in _COLUMNS)
  for column, value in zip(_COLUMNS, (image, caption), strict=True):
    if not problem and not (isinstance(value, str) and value.strip()):
      problem = f"{column} must be text and not empty"
  return f"line {number}", image, caption, problem
