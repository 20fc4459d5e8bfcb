"""Files that say which captions belong to which image.

Karpathy's splits, XM3600's, and all that a folder of images may have: COCO's
captions, CLIP_benchmark's lists, tables.
"""

from collections.abc import Iterator, Mapping
import json
import pathlib

from absl import logging

from big_siglip.data.sources import Example, Options
from big_siglip.data.sources.folder import annotations, Listing, tables
from big_siglip.data.sources.folder.gathering import begin
from big_siglip.data.sources.folder.table import Table
from big_siglip.data.sources.nested import as_texts
from big_siglip.data.sources.storage import Storage
from big_siglip.errors import BadExample, UserError

_LINES = ".jsonl"  # XM3600's; Karpathy's splits are one .json.
_IMAGE_KEY = '"image/key"'  # Of XM3600.


class CaptionedImages:
  """Images in a folder, with captions in one or more languages.

  Attributes:
    class_names: always None.
    texts: {language: captions of each image}; one language, "", unless the
      file has several.
  """

  class_names = None

  def __init__(
    self,
    folder: pathlib.Path,
    names: tuple[str, ...],
    texts: Mapping[str, tuple[tuple[str, ...], ...]],
  ):
    """Takes what the readers of this module have checked."""
    self._folder = folder
    self._names = names
    self.texts = texts

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(index)
    name = self._names[index]
    texts = [captions[index] for captions in self.texts.values()]
    image = (self._folder / name).read_bytes()
    return Example(image=image, texts=sum(texts, ()) or ("",), name=name)


def open_captions(
  file: str,
  folder: str | None,
  *,
  split: str,
  max_captions: int | None = None,
  language: str | None = None,
) -> CaptionedImages:
  """Returns the images that a file of captions names.

  Args:
    file: Karpathy's dataset_coco.json or dataset_flickr30k.json, XM3600's
      captions.jsonl, or any table of a folder (docs/data-sources.md).
    folder: where the images lie; Karpathy's COCO names sub-folders (val2014),
      which may be missing here; XM3600's lie here or in images/.
    split: Karpathy's: train, restval, val or test; others have none ("all").
    max_captions: the first so many of each image; 5 is usual for COCO.
    language: of XM3600: one such as "fr"; None for all.

  Raises:
    UserError: the file cannot be read, has no such split or language, or names
      an image that is not there.
  """
  where = f"config.evals: captions_file={file!r}"
  if not folder:
    raise UserError(f"{where}: path must be the folder of the images")
  root, path = (
    pathlib.Path(folder).expanduser(),
    pathlib.Path(file).expanduser(),
  )
  try:
    rows = list(_rows(path, root, where, split, language))
  except OSError as error:
    raise UserError(f"{where}: {error.strerror}") from error
  except BadExample as error:
    raise UserError(f"{where}: {error}") from error
  except ValueError as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{where}: is not JSON ({error})") from error
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{where}: not of the expected form ({error!r})") from error
  if not rows:
    raise UserError(f"{where}: split {split!r} is empty: no image to find")
  names = _find_images([candidates for candidates, _ in rows], root, where)
  languages = sorted({name for _, texts in rows for name in texts})
  return CaptionedImages(
    root,
    names,
    {
      name: tuple(
        tuple(texts.get(name, ())[:max_captions]) for _, texts in rows
      )
      for name in languages
    },
  )


# Where an image may lie, and its captions by language.
_Row = tuple[tuple[str, ...], dict[str, list[str]]]


def _rows(
  path: pathlib.Path,
  root: pathlib.Path,
  where: str,
  split: str,
  language: str | None,
) -> Iterator[_Row]:
  """Yields the images of a file of any kind."""
  if path.suffix not in (_LINES, ".json"):
    table = tables.open_table(str(path), Storage())
  else:
    with path.open(encoding="utf-8-sig") as stream:
      if path.suffix == _LINES:
        lines = list(stream)
        if _IMAGE_KEY in next(filter(str.strip, lines), ""):
          yield from _xm3600_rows(lines, where, language)
          return
        table = tables.open_table(str(path), Storage())
      else:
        content = json.load(stream)
        table = annotations.table_of(str(path), content)
        if table is None or table.splits:
          yield from _karpathy_rows(content, where, split)
          return
  yield from _table_rows(table, root, where)


def _table_rows(table: Table, root: pathlib.Path, where: str) -> Iterator[_Row]:
  """Yields the images of a table, wherever below the folder they lie."""
  listing = Listing(str(root), Storage())
  gathered = begin(table, Options())
  gathered.add(table, listing.find)
  if gathered.has_mistakes:
    raise UserError(f"{where}: {gathered.left_out}")
  if gathered.left_out:
    logging.warning("%s: %s", where, gathered.left_out)
  keys = gathered.columns.texts
  for image, fields in gathered.images.items():
    texts = [text for key in keys for text in as_texts(fields[key])]
    yield (image,), {"": texts}


def _karpathy_rows(content, where: str, split: str) -> Iterator[_Row]:
  """Yields the images of a split (Karpathy and Fei-Fei, arXiv:1412.2306)."""
  splits = sorted({image["split"] for image in content["images"]})
  if split not in splits:
    raise UserError(
      f"{where}: split={split!r}: must be one of {', '.join(splits)}"
    )
  for image in content["images"]:
    if image["split"] == split:
      name = image["filename"]
      nested = f"{image['filepath']}/{name}" if "filepath" in image else name
      captions = [sentence["raw"] for sentence in image["sentences"]]
      yield (nested, name), {"": captions}


def _xm3600_rows(stream, where: str, language: str | None) -> Iterator[_Row]:
  """Yields the images of XM3600 (arXiv:2205.12522)."""
  for number, line in enumerate(stream, 1):
    if not line.strip():
      continue
    image = json.loads(line)
    texts = {
      name: value["caption"]
      for name, value in image.items()
      if isinstance(value, dict) and language in (None, name)
    }
    if not texts:
      known = [n for n, value in image.items() if isinstance(value, dict)]
      raise UserError(
        f"{where}: language={language!r}: line {number} has "
        f"{', '.join(known) or 'no language'}"
      )
    name = f"{image['image/key']}.jpg"
    yield (name, f"images/{name}"), texts


def _find_images(rows, root: pathlib.Path, where: str) -> tuple[str, ...]:
  found, missing = [], []
  for candidates in rows:
    there = [name for name in candidates if (root / name).is_file()]
    (found if there else missing).append((there or list(candidates))[0])
  if missing:
    raise UserError(
      f"{where}: names {len(missing)} images that are not in {root}, the first "
      f"{missing[0]!r}"
    )
  return tuple(found)
