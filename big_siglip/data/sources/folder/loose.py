"""Images without a table: texts lie beside them, or folders name classes."""

from collections.abc import Iterable, Iterator, Mapping
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
LABEL, MASK = "label", "mask"
# What data sets call the folder of images, and that of masks.
_MASKS = (
  ("images", "masks"),
  ("images", "annotations"),
  ("images", "labels"),
  ("JPEGImages", "SegmentationClass"),
)


def texts_beside(listing: Listing) -> Table | None:
  """Returns the rows of images with files beside them, as img2dataset's.

  Fields are those of a tar's sample: "txt" and the keys of the json file. None
  where no image has such a file, or most have none and lie in class folders.
  """
  beside = _beside(listing, listing.images)
  having = sum(map(bool, beside.values()))
  if not having or (2 * having < len(beside) and class_folders(listing)):
    return None
  found = _read_all(listing, beside)
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


def masks_beside(listing: Listing) -> Table | None:
  """Returns the rows of images/NAME.jpg with masks/NAME.png.

  Also as ADE20K and PASCAL VOC call the two folders, and with folders of splits
  in both. None where there are no such folders.
  """
  for names in _MASKS:
    shown, masks = (_below(listing, name) for name in names)
    if shown and masks:
      break
  else:
    return None
  firsts = {path.split("/")[1] for path in shown.values()}
  has_splits = len(firsts) > 1 and all(map(is_split, firsts))
  beside = _beside(listing, shown.values())
  found = _read_all(listing, beside)
  columns = dict.fromkeys(("image", MASK))
  for row in found:
    columns |= dict.fromkeys(row.fields)

  def rows() -> Iterator[Row]:
    for (stem, path), row in zip(shown.items(), found, strict=True):
      problem = row.problem if beside[path] else ""
      if stem not in masks:
        problem = f"{path} has no mask {names[1]}/{stem}.png"
      yield Row(
        0,
        {**row.fields, "image": path, MASK: masks.get(stem)},
        problem,
        split=canonical(path.split("/")[1]) if has_splits else None,
      )

  return Table(
    listing.folder,
    tuple(columns),
    rows,
    tuple(sorted(map(canonical, firsts))) if has_splits else (),
    text_names=("txt", "caption"),
    is_found=True,
  )


def _below(listing: Listing, folder: str) -> dict[str, str]:
  """Returns the images below a folder, by their paths in it without ends."""
  return {
    _stem(path).partition("/")[2]: path
    for path in listing.images
    if path.startswith(f"{folder}/")
  }


def _beside(listing: Listing, images: Iterable[str]) -> dict[str, list[str]]:
  """Returns the files that say something of each image."""
  known = set(listing.files)
  return {
    image: [
      stem + end for end in _BESIDE if (stem := _stem(image)) + end in known
    ]
    for image in images
  }


def _read_all(listing: Listing, beside: Mapping[str, list[str]]) -> list[Row]:
  read = functools.partial(_read, listing)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(read, beside, beside.values()))


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
