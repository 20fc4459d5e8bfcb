"""PASCAL VOC's annotations: an XML file of boxes for each image.

Everingham et al. 2010 (doi:10.1007/s11263-009-0275-4). `Annotations/NAME.xml`
says what is in `JPEGImages/NAME.jpg`; tools that draw boxes write the same
files, often into `annotations/` beside `images/`.

VOC counts pixels from 1, and a box holds its last row and column: (1, 1, W, H)
is the whole image. Here boxes are (left, top, right, bottom) in pixels from 0,
with edges between the pixels: `config.data.boxes.format='xyxy'`. A box of VOC
(l, t, r, b) is (l - 1, t - 1, r, b).
"""

from collections.abc import Mapping
import concurrent.futures
import functools
import os
from typing import Any
from xml.etree import ElementTree

from big_siglip.data.sources.folder.coco import BOX_TEXTS, BOXES
from big_siglip.data.sources.folder.listing import Listing
from big_siglip.data.sources.folder.table import Row, Table
from big_siglip.data.sources.splits import canonical, is_split
from big_siglip.errors import BadExample

# What the folders of images and of annotations are called.
_FOLDERS = (("JPEGImages", "Annotations"), ("images", "annotations"))
_SETS = "ImageSets/Main"  # Lists of names, a file for each split.
_CORNERS = {"xmin": 1, "ymin": 1, "xmax": 0, "ymax": 0}  # From 1 to from 0.
_THREADS = 16  # That read; most of the time they wait for a disk.


class _Refused(ValueError):
  """The file has what no annotation needs."""


class _Builder(ElementTree.TreeBuilder):
  """Refuses a DOCTYPE: its entities may grow without end, or read files."""

  def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
    """Is called before any of it is read."""
    raise _Refused(f"has a DOCTYPE ({name}), which is not read")


def annotations_beside(listing: Listing) -> Table | None:
  """Returns the rows of images with an XML file of boxes.

  Texts of boxes are the names of objects, and "caption" lists each name once.
  Difficult objects have no boxes here, since VOC's own evaluation passes over
  them too; those that are truncated have: their boxes hold what is seen. None
  where there are no such files.
  """
  for shown, notes in _FOLDERS:
    files = [
      file
      for file in listing.files
      if file.startswith(f"{notes}/") and file.lower().endswith(".xml")
    ]
    if files and any(path.startswith(f"{shown}/") for path in listing.images):
      break
  else:
    return None
  images = {
    _stem(path): path for path in listing.images if path.startswith(f"{shown}/")
  }
  own = _splits(listing)
  read = functools.partial(_read, listing, shown, images, own)

  @functools.cache
  def found() -> list[Row]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      return list(pool.map(read, files))

  return Table(
    listing.folder,
    ("image", "caption", BOXES, BOX_TEXTS),
    lambda: iter(found()),
    tuple(sorted(set(own.values()))),
  )


def _splits(listing: Listing) -> dict[str, str]:
  """Returns the split of each name that a list has; none without lists."""
  found: dict[str, str] = {}
  for file in listing.files:
    folder, _, name = file.rpartition("/")
    word = name.removesuffix(".txt")
    if folder == _SETS and name.endswith(".txt") and is_split(word):
      text = listing.storage.read(listing.path(file)).decode("utf-8", "replace")
      for line in filter(None, map(str.split, text.splitlines())):
        found[line[0]] = canonical(word)
  return found


def _read(
  listing: Listing,
  shown: str,
  images: Mapping[str, str],
  splits: Mapping[str, str],
  file: str,
) -> Row:
  stem = _stem(file)
  split = splits.get(stem)
  try:
    root = _parse(listing.storage.read(listing.path(file)))
  except BadExample as error:
    return Row(0, {}, f"{file}: {error}", split=split)
  except (ElementTree.ParseError, ValueError, LookupError) as error:
    return Row(0, {}, f"{file}: is no XML that is read ({error})", split=split)
  names, boxes, texts = [], [], []
  for number, thing in enumerate(root.iterfind("object"), 1):
    name, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
    if box is None:
      problem = f"{file}: object {number} has no bndbox"
      return Row(0, {}, problem, split=split)
    names.append(name)
    if (thing.findtext("difficult") or "0").strip() != "1":
      boxes.append([_number(box.findtext(c), _CORNERS[c]) for c in _CORNERS])
      texts.append(name)
  fields = {
    "image": images.get(stem, f"{shown}/{stem}.jpg"),
    "caption": list(dict.fromkeys(filter(None, names))),
    BOXES: boxes,
    BOX_TEXTS: texts,
  }
  return Row(0, fields, split=split)


def _parse(data: bytes) -> ElementTree.Element:
  """Returns the root of a file.

  Raises:
    ValueError: it has a DOCTYPE, or an encoding that is not read.
    LookupError: nobody knows its encoding.
    ElementTree.ParseError: it is no XML.
  """
  parser = ElementTree.XMLParser(target=_Builder())
  parser.feed(data)
  return parser.close()


def _number(text: str | None, first: int) -> Any:
  """Returns a place counted from 0; what is no number is told as a box's."""
  try:
    return float(text or "") - first
  except ValueError:
    return text


def _stem(path: str) -> str:
  """Returns the name of a file, below its folder, without its end."""
  return os.path.splitext(path)[0].partition("/")[2]
