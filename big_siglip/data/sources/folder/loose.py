"""Images without a table: texts lie beside them, or folders name classes."""

from collections.abc import Iterator
import concurrent.futures
import functools
import json
import os

from big_siglip.data.sources.folder.listing import Listing
from big_siglip.data.sources.folder.table import Row, Table
from big_siglip.data.sources.splits import canonical, is_split
from big_siglip.errors import BadExample

# Files beside NAME.jpg that say something of it: NAME.txt ...
_BESIDE = (".txt", ".caption", ".json")
_THREADS = 16  # That read them; most of the time they wait for a disk.
LABEL = "label"


def texts_beside(listing: Listing) -> Table | None:
  """Returns the rows of images with files beside them, as img2dataset's.

  Fields are those of a tar's sample: "txt" and the keys of the json file. None
  where no image has such a file, or most have none and lie in class folders.
  """
  known = set(listing.files)
  beside = {
    image: [
      stem + end for end in _BESIDE if (stem := _stem(image)) + end in known
    ]
    for image in listing.images
  }
  having = sum(map(bool, beside.values()))
  if not having or (2 * having < len(beside) and class_folders(listing)):
    return None
  read = functools.partial(_read, listing)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = list(pool.map(read, beside, beside.values()))
  columns: dict[str, None] = {}
  for row in found:
    columns |= dict.fromkeys(row.fields)
  return Table(
    listing.folder,
    tuple(columns),
    lambda: iter(found),
    text_names=("txt", "caption"),
    is_found=True,
  )


def _stem(image: str) -> str:
  return os.path.splitext(image)[0]


def _read(listing: Listing, image: str, files: list[str]) -> Row:
  fields, problem = {}, ""
  for file in files:
    try:
      text = listing.storage.read(listing.path(file)).decode("utf-8-sig")
    except UnicodeDecodeError:
      problem = f"{file}: must be UTF-8 text"
      continue
    except BadExample as error:
      problem = f"{file}: {error}"
      continue
    if not file.endswith(".json"):
      fields[file.rpartition(".")[-1]] = text.strip("\r\n")
      continue
    try:
      inner = json.loads(text)
    except (ValueError, RecursionError):
      problem = f"{file}: is no JSON"
      continue
    if isinstance(inner, dict):
      fields = inner | fields
  if not files:
    problem = f"{image} has no text beside it"
  return Row(0, fields | {"image": image}, problem)


def class_folders(listing: Listing) -> Table | None:
  """Returns the rows of images in folders that name their classes.

  CLASS/NAME.jpg or SPLIT/CLASS/NAME.jpg; what lies deeper is of the class
  above it, as torchvision's ImageFolder has it. None for less than two classes,
  or where most images lie in none.
  """
  paths = {image: image.split("/") for image in listing.images}
  skip = 0  # Folders that hold all of it: images/, or the only split.
  while _only_one(paths.values(), skip):
    skip += 1
  firsts = {parts[skip] for parts in paths.values() if len(parts) > skip + 1}
  has_splits = len(firsts) > 1 and all(map(is_split, firsts))
  place = skip + has_splits
  classes = {
    image: parts[place] if len(parts) > place + 1 else None
    for image, parts in paths.items()
  }
  within = [image for image, name in classes.items() if name]
  total = len(paths)
  if has_splits:  # ImageNet's test images lie in no folders.
    sorted_ = {paths[image][skip] for image in within}
    total = sum(parts[skip] in sorted_ for parts in paths.values())
  if len({classes[i] for i in within}) < 2 or 2 * len(within) < total:
    return None

  def rows() -> Iterator[Row]:
    for image, name in classes.items():
      split = canonical(paths[image][skip]) if has_splits else None
      problem = "" if name else f"{image} lies in no folder of a class"
      yield Row(0, {"image": image, LABEL: name}, problem, split=split)

  splits = tuple(sorted(map(canonical, firsts))) if has_splits else ()
  columns = ("image", LABEL)
  return Table(
    listing.folder, columns, rows, splits, label=LABEL, is_found=True
  )


def _only_one(paths, place: int) -> bool:
  """Whether all images lie in one folder at this depth, and in others there."""
  return bool(paths) and (
    all(len(parts) > place + 2 for parts in paths)
    and len({parts[place] for parts in paths}) == 1
  )
