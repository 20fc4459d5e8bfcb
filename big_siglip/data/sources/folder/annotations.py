"""JSON files of annotations: COCO's captions, Karpathy's splits, and lists."""

from collections.abc import Iterator
import json
from typing import Any, TypeGuard

from big_siglip.data.sources.folder import coco, tables
from big_siglip.data.sources.folder.table import Row, Table
from big_siglip.data.sources.folder.tables import IMAGE_NAMES, json_rows
from big_siglip.data.sources.splits import canonical
from big_siglip.errors import UserError

_FORMS = (
  "COCO's captions (images, annotations with image_id and caption), Karpathy's"
  " splits (images with sentences), a list of objects with an image and its"
  " captions, or an object of captions by image"
)


def open_annotations(
  file: str, data: bytes, instances: bytes | None = None
) -> Table:
  """Reads a JSON file of captions; images are "image", captions "caption".

  Args:
    file: what messages call it.
    data: what it holds; COCO's may be of boxes alone.
    instances: COCO's file of boxes for the same images. Boxes are "boxes", as
      COCO writes them (xywh), and "box_texts", the names of their categories.

  Raises:
    UserError: it is no JSON, or of no known form.
  """
  try:
    content = _load(data)
    boxes = content if instances is None else _load(instances)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{file}: is not JSON ({error})") from error
  table = coco.table_of(file, content, boxes) or table_of(file, content)
  if table is None:
    raise UserError(f"{file}: must be {_FORMS}")
  return table


def is_annotations(data: bytes) -> bool:
  """Whether the bytes of a JSON file are annotations of a known form."""
  try:
    return table_of("", _load(data)) is not None
  except (ValueError, RecursionError):
    return False


def _load(data: bytes) -> Any:
  """Returns what a file says, be it one value or one in each line."""
  text = data.decode("utf-8-sig")
  try:
    return json.loads(text)
  except ValueError:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or not lines[0].lstrip().startswith("{"):
      raise
    json.loads(lines[0])
    return [row for _, row in tables.read_lines(text)]


def table_of(file: str, content: Any) -> Table | None:
  """Returns what a JSON file holds, if it is of a known form.

  Args:
    file: what messages call it.
    content: what it says.
  """
  if isinstance(content, dict):
    images, notes = content.get("images"), content.get("annotations")
    if _objects(images):
      if "sentences" in images[0]:
        return _karpathy(file, images)
      if coco.has_captions(content):
        return coco.table_of(file, content, content)
    paths = content.get("image_paths")  # CLIP_benchmark's, of other languages.
    if isinstance(paths, list) and isinstance(notes, list):
      pairs = zip(paths, notes, strict=False)
      return _listed(file, [{"image": i, "caption": c} for i, c in pairs])
    if {str(name).lower() for name in content} & {*IMAGE_NAMES}:
      return _by_column(file, content)
    if content and all(map(_is_texts, content.values())):
      items = content.items()
      return _listed(file, [{"image": i, "caption": c} for i, c in items])
  # A list of what JSON Lines have in each line.
  if _objects(content) and {str(k).lower() for k in content[0]} & {
    *IMAGE_NAMES
  }:
    return _listed(file, content)
  return None


def _by_column(file: str, content: dict[str, Any]) -> Table | None:
  """Returns a table that was written by its columns, as pandas does."""
  columns = [
    list(values.values()) if isinstance(values, dict) else values
    for values in content.values()
  ]
  if not all(isinstance(values, list) for values in columns):
    return None
  if len({len(values) for values in columns}) != 1:
    return None
  rows = zip(*columns, strict=True)
  return _listed(file, [dict(zip(content, row, strict=True)) for row in rows])


def _objects(value: Any) -> TypeGuard[list[dict[Any, Any]]]:
  return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_texts(value: Any) -> bool:
  if isinstance(value, list):
    return bool(value) and all(isinstance(item, str) for item in value)
  return isinstance(value, str)


def _listed(file: str, items: list[Any]) -> Table:
  return json_rows(file, list(enumerate(items, 1)), "entry")


def _karpathy(file: str, images: list[dict]) -> Table:
  """A row for each image (Karpathy and Fei-Fei 2015, arXiv:1412.2306)."""
  splits = {
    canonical(str(image["split"]))
    for image in images
    if isinstance(image, dict) and "split" in image
  }

  def rows() -> Iterator[Row]:
    for number, image in enumerate(images, 1):
      try:
        name = image["filename"]
        texts = [sentence["raw"] for sentence in image["sentences"]]
      except (KeyError, TypeError):
        yield Row(number, {}, "is no image with filename and sentences")
        continue
      # Its folder need not be there.
      names = (f"{image['filepath']}/{name}", name)
      fields = {
        **image,
        "image": names if "filepath" in image else name,
        "caption": texts,
      }
      split = image.get("split")
      yield Row(number, fields, split=split and canonical(str(split)))

  columns = dict.fromkeys(["image", "caption", *images[0]])
  found = tuple(sorted(splits))
  return Table(file, tuple(columns), rows, found, unit="image")
