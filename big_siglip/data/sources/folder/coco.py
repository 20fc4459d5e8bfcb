"""COCO's annotations: captions of images, and boxes with their categories.

Lin et al. 2014 (arXiv:1405.0312) and Chen et al. 2015 (arXiv:1504.00325). Boxes
are (left, top, width, height) in pixels: `config.data.boxes.format='xywh'`.
"""

from collections.abc import Iterator
from typing import Any

from big_siglip.data.sources.folder.table import Row, Table

BOXES, BOX_TEXTS = "boxes", "box_texts"


def has_captions(content: Any) -> bool:
  """Whether a JSON file holds COCO's captions."""
  return _has(content, "caption")


def table_of(file: str, content: Any, boxes: Any) -> Table | None:
  """Returns a row for each image, with all its captions and boxes.

  Args:
    file: what messages call it.
    content: of the file.
    boxes: of the file that may have boxes; the same, or another one.

  Returns:
    The table; None where the file has neither captions nor boxes.
  """
  with_boxes = _has(boxes, "bbox")
  if not has_captions(content) and not (with_boxes and boxes is content):
    return None
  captions = _captions(content)
  found = _boxes(boxes) if with_boxes else {}

  def rows() -> Iterator[Row]:
    for number, image in enumerate(content["images"], 1):
      if not isinstance(image, dict) or "file_name" not in image:
        yield Row(number, {}, "is no image with file_name")
        continue
      fields = {**image, "image": image["file_name"]}
      fields["caption"] = captions.get(image.get("id"), [])
      if with_boxes:
        own = found.get(image.get("id"), ([], []))
        fields |= {BOXES: own[0], BOX_TEXTS: own[1]}
      yield Row(number, fields)

  columns = ["image", "caption", *content["images"][0]]
  columns += [BOXES, BOX_TEXTS] if with_boxes else []
  return Table(file, tuple(dict.fromkeys(columns)), rows, unit="image")


def _has(content: Any, key: str) -> bool:
  """Whether it has images, and notes on them with a field."""
  if not isinstance(content, dict):
    return False
  images, notes = content.get("images"), content.get("annotations")
  if not (isinstance(images, list) and images):
    return False
  first = notes[0] if isinstance(notes, list) and notes else None
  return isinstance(first, dict) and "image_id" in first and key in first


def _captions(content: Any) -> dict[Any, list[Any]]:
  found: dict[Any, list[Any]] = {}
  for note in content["annotations"]:
    if isinstance(note, dict) and "caption" in note:
      found.setdefault(note.get("image_id"), []).append(note["caption"])
  return found


def _boxes(content: Any) -> dict[Any, tuple[list[Any], list[Any]]]:
  """Returns boxes and their categories by image, without crowds.

  A crowd's box holds what nobody counted, which no text tells.
  """
  names = {
    category.get("id"): category.get("name")
    for category in content.get("categories") or ()
    if isinstance(category, dict)
  }
  found: dict[Any, tuple[list[Any], list[Any]]] = {}
  for note in content["annotations"]:
    if isinstance(note, dict) and not note.get("iscrowd"):
      boxes, texts = found.setdefault(note.get("image_id"), ([], []))
      boxes.append(note.get("bbox"))
      texts.append(names.get(note.get("category_id")))
  return found
