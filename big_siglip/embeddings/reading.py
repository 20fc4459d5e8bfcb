"""Opens what is to be embedded, whatever it is.

`read_images` and `read_texts` take a folder, a list, a table, or whatever
`data.sources` opens: tar shards, Parquet, ArrayRecord, TFDS.
"""

from collections.abc import Sequence
import pathlib

from big_siglip.embeddings import datasets, tables
from big_siglip.embeddings.given import RESERVED
from big_siglip.embeddings.inputs import DataImages, Inputs
from big_siglip.errors import UserError

_IMAGE_COLUMNS = ("image", "file_name", "filename", "path", "image_path")
_TEXT_COLUMNS = ("caption", "text", "captions", "texts", "sentence", "title")


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
    data: the format of a data set, one of `schema.sources.NAMES`; None:
      seen from the names of the files, if it is one.
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
    rows = tables.read_rows(place, column, _IMAGE_COLUMNS, flag)
    return _images_of_table(place, rows, f"{flag}={path}")
  if not keys:
    raise UserError(f"{flag}={path}: holds no images")
  return Inputs(place, keys)


def _images_of_table(
  place: pathlib.Path, rows: Sequence[tables.Row], where: str
) -> Inputs:
  """Returns the images that a table names, with what it says of them."""
  first = {}  # An image that stands twice, as with two captions, counts once.
  for row in rows:
    if key := row.text.strip():
      first.setdefault(key, row)
  if not first:
    raise UserError(f"{where}: holds no images")
  rows = list(first.values())
  others = tables.columns_of(rows, [n for n in RESERVED if n != "text"])
  name = next((name for name in _TEXT_COLUMNS if name in others), "")
  captions = others.pop(name, None)
  others.pop("text", None)
  if captions is not None:
    captions = [None if text is None else str(text) for text in captions]
  return Inputs(place, list(first), captions=captions, others=others)


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
    texts, others = datasets.read_texts(path, data, split, column), {}
    rows = [
      (f"{number}#{i}" if i else str(number), text)
      for number, found in enumerate(texts)
      for i, text in enumerate(found)
    ]
    place = pathlib.Path(path)
  else:
    _check_split(split)
    place = _existing(path, "--texts")
    whole = tables.read_rows(place, column, _TEXT_COLUMNS, "--texts")
    rows = [(str(row.line), row.text) for row in whole]
    others = tables.columns_of(whole, RESERVED)
  if not rows:
    raise UserError(f"--texts={path}: holds no texts")
  keys, found = zip(*rows, strict=True)
  return Inputs(place, keys, found, data or "", others=others)


def _existing(path: str, flag: str) -> pathlib.Path:
  place = pathlib.Path(path).expanduser().resolve()
  if not place.exists():
    raise UserError(f"{flag}={path}: no such file or folder")
  return place


def _check_split(split: str | None) -> None:
  if split is not None:
    raise UserError(f"--split={split}: only a data set has splits (--data)")
