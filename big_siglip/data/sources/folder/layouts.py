"""Which way a folder is laid out."""

import os

from big_siglip.data import image_files
from big_siglip.data.sources.folder import annotations, loose, tables, voc
from big_siglip.data.sources.folder.listing import Listing
from big_siglip.data.sources.folder.table import Table
from big_siglip.data.sources.splits import canonical, is_split, split_in
from big_siglip.errors import UserError

# Tables that are what is meant wherever they lie, best first.
CAPTION_FILES = ("captions.csv", "captions.tsv", "captions.jsonl")
_HUB_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_TABLES = (*tables.DELIMITED, tables.LINES, ".json")
# Files in a folder that another `config.data.name` reads.
_OTHER_FORMATS = {
  "tar": ".tar",
  "parquet": ".parquet",
  "arrayrecord": "array_record",
  "tfds": "dataset_info.json",
}
_HEAD = 2**16  # Bytes of a table that tell whether it is one of images.
_LARGEST = 2**28  # Bytes of a JSON file that is looked into unasked.


class Layout:
  """The tables of a folder, each with the folder and the split that it is of.

  Attributes:
    parts: (split, sub-folder, table's file; None for images without a table).
  """

  def __init__(self, listing: Listing, parts):
    """Takes what `find` found."""
    self._listing = listing
    self.parts: list[tuple[str | None, str, str | None]] = parts

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits that files or folders are named for; none, or several."""
    names = sorted({split for split, _, _ in self.parts if split})
    return tuple(names) if len(names) > 1 else ()

  def read(
    self, split: str, boxes: bool = False
  ) -> list[tuple[str | None, str, Table]]:
    """Returns (split, sub-folder, table) of what may hold a split.

    Args:
      split: of the data set, or "all".
      boxes: whether boxes are wanted, which lie in files of their own: COCO's
        instances, PASCAL VOC's annotations.

    Raises:
      UserError: a table cannot be read, or nothing says anything of images.
    """
    found = []
    for own, folder, file in self.parts:
      if split == "all" or not self.splits or own == canonical(split):
        own = own if self.splits else None
        found.append((own, folder, self._table(file, boxes)))
    return found

  def _table(self, file: str | None, boxes: bool) -> Table:
    if file is None:
      return _without_table(self._listing, boxes)
    path, storage = self._listing.path(file), self._listing.storage
    if file.lower().endswith(".json"):
      other = file.replace("captions", "instances")
      wanted = boxes and other != file and self._listing.is_file(other)
      return annotations.open_annotations(
        path,
        storage.read(path),
        storage.read(self._listing.path(other)) if wanted else None,
      )
    return tables.open_table(path, storage)


def find(listing: Listing, file: str | None) -> Layout:
  """Returns how a folder is laid out.

  In this order: the file that was asked for; captions.csv, .tsv or .jsonl;
  metadata.csv, .jsonl or .parquet, also in a folder for each split; any other
  table at the top that names images; annotations/captions_*.json; masks, or
  PASCAL VOC's annotations, in a folder beside that of the images; texts beside
  the images; class folders.

  Args:
    listing: of the folder.
    file: a table in it that was asked for.

  Raises:
    UserError: several tables could be meant.
    BadExample: the folder is not reached.
  """
  if file is not None:
    return Layout(listing, [(None, "", file)])
  for names in (CAPTION_FILES, _HUB_FILES):
    if present := [name for name in names if name in listing.top]:
      _refuse_several(listing, present)
      return Layout(listing, [(None, "", present[0])])
  if parts := _in_split_folders(listing):
    return Layout(listing, parts)
  for names in (_other_tables(listing), _annotations(listing)):
    by_split = {split_in(name): name for name in names}
    if len(by_split) == len(names) > 1 and None not in by_split:
      return Layout(listing, [(s, "", name) for s, name in by_split.items()])
    if names:
      _refuse_several(listing, names)
      return Layout(listing, [(None, "", names[0])])
  return Layout(listing, [(None, "", None)])


def _refuse_several(listing: Listing, names: list[str]) -> None:
  if len(names) > 1:
    raise UserError(
      f"config.data.path={listing.folder!r}: holds several of"
      f" {', '.join(names)}; it may name one of them"
    )


def _in_split_folders(listing: Listing):
  """Returns the Hub's metadata files, where each split's folder has one."""
  parts = []
  for folder in (name.rstrip("/") for name in listing.top if name[-1] == "/"):
    if is_split(folder):
      names = [f"{folder}/{name}" for name in (*CAPTION_FILES, *_HUB_FILES)]
      present = [name for name in names if listing.is_file(name)]
      _refuse_several(listing, present)
      parts += [(canonical(folder), folder, name) for name in present]
  return parts


def _other_tables(listing: Listing) -> list[str]:
  stems = {
    os.path.splitext(name)[0]
    for name in listing.top
    if image_files.is_image(name)
  }
  return [
    name
    for name in listing.top
    if name.lower().endswith(_TABLES)
    and os.path.splitext(name)[0] not in stems  # A text beside an image.
    and _is_of_images(listing, name)
  ]


def _annotations(listing: Listing) -> list[str]:
  """Returns COCO's captions, whose other files there are large."""
  if "annotations/" not in listing.top:
    return []
  inner = Listing(listing.path("annotations"), listing.storage)
  return [
    f"annotations/{name}"
    for name in inner.top
    if name.endswith(".json") and "caption" in name
  ]


def _is_of_images(listing: Listing, name: str) -> bool:
  """Whether a file says something of images, seen from its first bytes."""
  path, storage = listing.path(name), listing.storage
  if name.lower().endswith(".json"):
    if storage.stamp(path).size > _LARGEST:
      return "caption" in name or "dataset" in name
    return annotations.is_annotations(storage.read(path))
  return tables.names_images(name, storage.read(path, 0, _HEAD))


def _without_table(listing: Listing, boxes: bool) -> Table:
  ways = [loose.masks_beside, loose.texts_beside, loose.class_folders]
  # VOC's folders have masks as well, of some images.
  ways.insert(0 if boxes else 1, voc.annotations_beside)
  for read in ways:
    if table := read(listing):
      return table
  where = sorted({os.path.dirname(image) for image in listing.images})
  folders = ", ".join(f"{name}/" if name else "itself" for name in where[:3])
  count = len(listing.images)
  holds = f"{count} images, in {folders}" if count else "no images"
  others = [name for name in listing.top if name.lower().endswith(_TABLES)]
  if others:
    holds += f", and {', '.join(others[:5])}, no table with a column of images"
  for name, ends in _OTHER_FORMATS.items():
    if files := [file for file in listing.top if ends in file.lower()]:
      holds += f", and {files[0]}, which the data set {name!r} reads"
  raise UserError(
    f"config.data.path={listing.folder!r}: must hold one of"
    f" {', '.join((*CAPTION_FILES, *_HUB_FILES))}, another table of images, a"
    f" text beside each image, a folder for each class, images/ and masks/, or"
    f" JPEGImages/ and Annotations/; it holds {holds}"
  )
