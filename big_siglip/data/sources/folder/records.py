"""A folder of images with captions or labels, as records."""

from collections.abc import Callable, Mapping, Sequence
import os

import numpy as np

from big_siglip.data.faults import Fault
from big_siglip.data.sources.example import column, Options, Record
from big_siglip.data.sources.folder import gathering, layouts
from big_siglip.data.sources.folder.gathering import Gathered
from big_siglip.data.sources.folder.listing import Listing
from big_siglip.data.sources.held_out import splits_of
from big_siglip.data.sources.nested import dig
from big_siglip.data.sources.splits import canonical
from big_siglip.data.sources.storage import is_remote, local_path, Storage
from big_siglip.data.sources.stored_images import kind_of
from big_siglip.errors import BadExample, UserError

SPLITS = ("all", "train", "test")


class FolderRecords:
  """The images of a folder, whatever its layout; see `example.Records`.

  A table of which rows cannot be used is one of the `faults`.
  """

  def __init__(self, folder: str, split: str, options: Options):
    """Reads what is said of the images, and looks whether each is there.

    Raises:
      UserError: unknown split, missing folder, or see `read_folder`.
    """
    self.where = f"the folder {folder}"
    listing, gathered = read_folder(folder, split, options)
    self._folder, self._storage = listing.folder, listing.storage
    self._listing, self._further = listing, options.fields
    columns = gathered.columns
    self.image_key, self.text_keys = columns.image, columns.texts
    self.label_key = columns.label
    chosen = chosen_images(
      gathered,
      split,
      folder,
      lambda images: splits_of(images, self._folder, self._storage),
    )
    self.faults = ()
    if gathered.left_out:
      where = gathered.where
      self.faults = (Fault(-1, "record", where, gathered.left_out),)
    self._images = tuple(chosen)
    self._rows = tuple(gathered.images[image] for image in chosen)
    self.where = gathered.where
    if gathered.has_splits:
      self.where += f", its split {canonical(split)!r}"
    lists = [key for key in self.text_keys if key != self.label_key]
    self.num_texts = sum(len(row[key]) for row in self._rows for key in lists)
    self.num_texts += len(self._rows) * (len(lists) < len(self.text_keys))
    # A row of a .jsonl file need not have every field.
    self.field_names = tuple(dict.fromkeys(k for r in self._rows for k in r))
    self.class_names = None
    if self.label_key:
      self._name_classes(gathered)

  def __len__(self) -> int:
    return len(self._images)

  def read(self, index: int) -> Record:
    """Returns an image and the row of it; see `example.Records`."""
    name = self._images[index]
    path = os.path.join(self._folder, name)
    image = self._storage.read(path)
    fields = {**self._rows[index], self.image_key: image}
    for key in self._further:  # A mask is a file, as the image is.
      if kind_of(dig(fields, key)) == "path":
        fields[key] = self._read_beside(dig(fields, key))
    return Record(name, fields)

  def _read_beside(self, name: str) -> bytes:
    """Returns a file that a table names."""
    found = self._listing.find(name)
    if found is None:
      raise BadExample(f"{name!r} is not in {self._folder}", "missing")
    return self._storage.read(os.path.join(self._folder, found))

  def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns fields of all records, from the table."""
    return {key: column([row.get(key) for row in self._rows]) for key in keys}

  def _name_classes(self, gathered: Gathered) -> None:
    key = self.label_key
    self.class_names = gathering.class_names(gathered.images, key)
    numbers = {name: number for number, name in enumerate(self.class_names)}
    for row in self._rows:
      row[key] = numbers.get(str(row.get(key)))


def read_folder(
  folder: str,
  split: str,
  options: Options,
  find: Callable[[str], str | None] | None = None,
) -> tuple[Listing, Gathered]:
  """Returns all that a folder says of its images.

  Args:
    folder: local or remote; or a table of images in it.
    split: of it; what belongs to others may be left out.
    options: which columns to take.
    find: an image as a table names it -> the name to call it by, or None, which
      is no mistake; None: looks for it in the folder.

  Raises:
    UserError: no such folder; several tables or none; a column is missing; a
      row is a mistake; too many cannot be used.
  """
  storage = Storage(options.retry_seconds)
  place, field = str(folder), f"config.data.path={str(folder)!r}"
  place = place if is_remote(place) else local_path(place)
  try:
    file = None
    if not storage.is_folder(place):
      if not storage.exists(place):
        raise UserError(f"{field}: no such folder")
      place, file = gathering.folder_of(place)
    listing = Listing(place, storage)
    layout = layouts.find(listing, file)
    if layout.splits:
      _check_split(split, layout.splits)
    gathered = None
    boxes = bool({*options.box_keys} & {*options.fields})
    for own, below, table in layout.read(split, boxes):
      gathered = gathered or gathering.begin(table, options)
      gathered.has_splits |= bool(own or table.splits)
      where = os.path.join(place, below).rstrip("/")
      where = None if find else where
      finder = str if table.is_found else _finder(listing, below)
      gathered.add(table, find or finder, where, own, canonical(split))
    gathered.check(options.max_skipped)
  except BadExample as error:
    raise UserError(f"{field}: {error}") from error
  return listing, gathered


def _finder(listing: Listing, below: str) -> Callable[[str], str | None]:
  if not below:
    return listing.find

  def find(image: str) -> str | None:
    found = listing.find(f"{below}/{image}")
    return found or listing.find(f"{below}/images/{image}")

  return find


def _check_split(split: str, names: Sequence[str]) -> None:
  if canonical(split) not in ("all", *names):
    raise UserError(
      f"config.data.split={split!r}: must be one of all, {', '.join(names)},"
      " for a folder"
    )


def chosen_images(
  gathered: Gathered,
  split: str,
  folder: str,
  hold_out: Callable[[Sequence[str]], Mapping[str, str]],
) -> list[str]:
  """Returns the images of a split: the data set's own, or a tenth to test on.

  Args:
    gathered: all that a folder says.
    split: "all", or that of the images to return.
    folder: what messages call it.
    hold_out: returns the splits of images that have none; see `held_out`.

  Raises:
    UserError: there is no such split, or it is empty.
  """
  wanted = canonical(split)
  if gathered.has_splits:
    _check_split(split, sorted(set(gathered.splits.values())))
    own = gathered.splits.get
  else:
    _check_split(split, SPLITS[1:])
    own = hold_out(list(gathered.images)).get if wanted != "all" else str
  chosen = [i for i in gathered.images if wanted in ("all", own(i))]
  if not chosen:
    raise UserError(
      f"config.data.path={folder!r}: split {split!r} is empty, of"
      f" {len(gathered.images)} images in all; split='all' takes all of them"
    )
  return chosen
