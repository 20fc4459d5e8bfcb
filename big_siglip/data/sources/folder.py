"""A folder of images with captions.csv, .tsv or .jsonl beside them."""

from collections.abc import Callable, Iterator, Sequence
import csv
import functools
import io
import json
import os
import pathlib
from typing import Any

import numpy as np

from big_siglip.data.class_names import sort_labels
from big_siglip.data.sources.example import (
  column,
  Options,
  Record,
  require_other_than_image,
)
from big_siglip.data.sources.held_out import splits_of
from big_siglip.data.sources.storage import (
  file_system,
  is_remote,
  local_path,
  Storage,
)
from big_siglip.data.tables import allow_long_fields
from big_siglip.errors import BadExample, UserError

SPLITS = ("all", "train", "test")
CAPTION_FILES = ("captions.csv", "captions.tsv", "captions.jsonl")


class FolderRecords:
  """The images that a caption file names; see `example.Records`.

  Image paths are relative to the folder or to its sub-folder images/.
  """

  faults = ()

  def __init__(self, folder: str, split: str, options: Options):
    """Reads the captions and looks whether every image is there.

    Raises:
      UserError: unknown split, missing folder, a row without its image, or what
        `CaptionFile` raises.
    """
    check_split(split)
    self.where = f"the folder {folder}"
    self._folder = folder if is_remote(folder) else local_path(folder)
    self._storage = Storage(options.retry_seconds)
    file = CaptionFile(self._folder, options)
    self.image_key, self.text_keys = file.image_key, file.text_keys
    self.label_key = options.label_key
    rows = file.read(_Finder(self._folder, self._storage))
    chosen = list(rows)
    if split != "all":
      of = splits_of(chosen, self._folder, self._storage)
      chosen = [image for image in rows if of[image] == split]
    if not chosen:
      raise UserError(
        f"config.data.path={folder!r}: split {split!r} is empty, of"
        f" {len(rows)} images in all; split='all' takes all of them"
      )
    self._images = tuple(chosen)
    self._rows = tuple(rows[image] for image in chosen)
    # A row of a .jsonl file need not have every field.
    self.field_names = tuple(dict.fromkeys(k for r in self._rows for k in r))
    self.class_names = None
    if self.label_key:
      self._name_classes(rows.values())

  def __len__(self) -> int:
    return len(self._images)

  def read(self, index: int) -> Record:
    """Returns an image and the row of it; see `example.Records`."""
    name = self._images[index]
    path = os.path.join(self._folder, name)
    image = self._storage.read(path)
    return Record(name, {**self._rows[index], self.image_key: image})

  def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns fields of all records, from the caption file."""
    return {key: column([row.get(key) for row in self._rows]) for key in keys}

  def _name_classes(self, rows) -> None:
    self.class_names = sort_labels({str(row[self.label_key]) for row in rows})
    numbers = {name: number for number, name in enumerate(self.class_names)}
    for row in self._rows:
      row[self.label_key] = numbers[str(row[self.label_key])]


class CaptionFile:
  """captions.csv, captions.tsv or captions.jsonl of a folder.

  It has a column (field) for the image, "image", and one or more for texts,
  "caption", unless config.data names others; a row for each caption: an image
  may have several. Further columns are there for filters and labels; the first
  row of an image counts.

  Attributes:
    image_key: the column of the image.
    text_keys: those of texts.
  """

  def __init__(self, folder: str, options: Options):
    """Reads nothing yet."""
    self._folder = folder
    self._storage = Storage(options.retry_seconds)
    self.image_key = options.image_key or "image"
    self.text_keys = tuple(options.text_weights) or ("caption",)
    # A label that is also the text stays one: it is the class's name.
    self._lists = [key for key in self.text_keys if key != options.label_key]
    self._label_key = options.label_key
    self._columns = [self.image_key, *self.text_keys, *options.fields]
    self._columns += [options.label_key] if options.label_key else []

  def read(
    self, find_image: Callable[[str], str | None]
  ) -> dict[str, dict[str, Any]]:
    """Returns the fields of every image, in the order of their first rows.

    Texts are lists. The image itself is not among the fields.

    Args:
      find_image: an image as the file names it -> the name to call it by, or
        None if there is none.

    Raises:
      UserError: no or two caption files, a missing column, an incomplete row or
        one without its image, no rows.
    """
    file = self._find()
    images, found, problems = {}, {}, []
    try:
      text = self._storage.read(file).decode("utf-8-sig")
      for line, row, problem in self._parse(file, text):
        problem = problem or self._incomplete(row)
        image = row.get(self.image_key)
        if not problem and image not in found:
          found[image] = find_image(image)
        if not problem and not found[image]:
          problem = f"no image {image!r} in {self._folder} or its images/"
        if problem:
          problems.append(f"line {line}: {problem}")
        else:
          self._add(images, found[image], row)
    except UnicodeDecodeError as e:
      raise UserError(f"{file}: must be UTF-8 text ({e})") from e
    except csv.Error as e:
      raise UserError(f"{file}: {e}; is a quote never closed?") from e
    except BadExample as e:
      raise UserError(f"config.data.path={self._folder!r}: {e}") from e
    if problems:
      count = f" ({len(problems)} bad rows in all)" if len(problems) > 1 else ""
      raise UserError(f"{file} {problems[0]}{count}")
    if not images:
      raise UserError(f"{file}: has no rows, so the data set is empty")
    return images

  def _add(self, images, image: str, row: dict[str, Any]) -> None:
    if image not in images:
      images[image] = {**row, **{key: [] for key in self._lists}}
      del images[image][self.image_key]
    for key in self._lists:
      images[image][key] += _as_list(row.get(key))

  def _find(self) -> str:
    field = f"config.data.path={str(self._folder)!r}"
    try:
      if not self._storage.is_folder(self._folder):
        raise UserError(f"{field}: no such folder")
      files = [os.path.join(self._folder, name) for name in CAPTION_FILES]
      files = [file for file in files if self._storage.exists(file)]
    except BadExample as e:
      raise UserError(f"{field}: {e}") from e
    if len(files) != 1:
      problem = "holds several of" if files else "must hold one of"
      raise UserError(f"{field}: {problem} {', '.join(CAPTION_FILES)}")
    return files[0]

  def _parse(self, file: str, text: str) -> Iterator["_Row"]:
    if file.endswith(".jsonl"):
      return self._jsonl_rows(file, text)
    return self._csv_rows(file, text, "\t" if file.endswith(".tsv") else ",")

  def _csv_rows(self, file: str, text: str, delimiter: str) -> Iterator["_Row"]:
    allow_long_fields()
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter=delimiter)
    present = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = present
    self._check_columns(file, present)
    row = {}
    for row in reader:
      problem = ""
      if None in row:
        problem = "more fields than columns"
        if delimiter == ",":
          problem += "; quote captions that hold commas"
      yield reader.line_num, row, problem
    # All that follows such a quote is taken for one text.
    *_, last = row.values() or [None]
    closed = text.count('"') % 2 == 0 or text.rstrip().endswith('"')
    if not closed and isinstance(last, str) and "\n" in last:
      yield reader.line_num, row, "a quote before it is never closed"

  def _jsonl_rows(self, file: str, text: str) -> Iterator["_Row"]:
    rows, present = [], {}
    for number, line in enumerate(text.split("\n"), 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except (json.JSONDecodeError, RecursionError):
        row = None
      if not isinstance(row, dict):
        rows.append((number, {}, "is not a JSON object"))
        continue
      present |= row
      rows.append((number, row, ""))
    # A row need not have every field.
    if present or any(not problem for _, _, problem in rows):
      self._check_columns(file, list(present))
    return iter(rows)

  def _check_columns(self, file: str, present: list[str]) -> None:
    require_other_than_image(self.image_key, self.text_keys, self._label_key)
    missing = [name for name in self._columns if name not in present]
    if missing:
      raise UserError(
        f"{file}: missing column {', '.join(missing)}; it has:"
        f" {', '.join(present) or 'none'}"
      )

  def _incomplete(self, row: dict[str, Any]) -> str:
    """Returns what a row lacks: an image, any text at all, or its label."""
    texts = [v for key in self.text_keys for v in _as_list(row.get(key))]
    for key, values in (
      (self.image_key, [row.get(self.image_key)]),
      (self.text_keys[0], texts),
    ):
      if not any(isinstance(v, str) and v.strip() for v in values):
        return f"{key} must be text and not empty"
    if self._label_key and row.get(self._label_key) in (None, ""):
      return f"{self._label_key} must not be empty"
    return ""


_Row = tuple[int, dict[str, Any], str]  # Line, fields, what is wrong with it.


class _Finder:
  """Finds images: a remote folder is listed once."""

  def __init__(self, folder: str, storage: Storage):
    self._folder, self._storage = folder, storage

  def __call__(self, image: str) -> str | None:
    """Returns the path of an image, from the folder on; None without it."""
    for candidate in (image, os.path.join("images", image)):
      path = pathlib.PurePath(candidate).as_posix()
      if is_remote(self._folder):
        if path in self._listed:
          return path
      elif os.path.isfile(os.path.join(self._folder, candidate)):
        return path
    return None

  @functools.cached_property
  def _listed(self) -> set[str]:
    fs, root = file_system(self._folder)
    root = root.rstrip("/") + "/"
    found = self._storage.call(self._folder, lambda: fs.find(root))
    return {file.removeprefix(root) for file in found}


def _as_list(value: Any) -> list[Any]:
  return value if isinstance(value, list) else [value]


def check_split(split: str) -> None:
  """Raises a `UserError` unless a folder has such a split."""
  if split not in SPLITS:
    allowed = ", ".join(SPLITS)
    raise UserError(
      f"config.data.split={split!r}: must be one of {allowed}, for a folder"
    )
