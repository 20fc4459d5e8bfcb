"""Which columns of Parquet files are the image, the texts and the label."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
from typing import Any

import pyarrow as pa

from big_siglip.data.sources.example import (
  choose,
  choose_text,
  LABEL_NAMES,
  NAME_NAMES,
  Options,
  TEXT_NAMES,
)
from big_siglip.data.sources.nested import dig
from big_siglip.data.sources.numbered import alike
from big_siglip.data.sources.stored_images import kind_of
from big_siglip.errors import UserError

# What columns of images are called, best first.
_IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "images", "picture")

Kinds = Mapping[str, pa.DataType]  # By column, nested ones as "a/b".


def find_image(
  kinds: Kinds,
  head: Callable[[Sequence[str]], list[dict[str, Any]]],
  where: str,
) -> str:
  """Returns the column of images: of bytes, or of texts that hold them.

  Args:
    kinds: of all columns.
    head: columns -> some of the first rows.
    where: what messages call the files.

  Raises:
    UserError: there is none, or there are several.
  """
  lists = [k for k, t in kinds.items() if _is_list_of_images(t)]
  images = [k for k, t in kinds.items() if _is_image(t)]
  # Not the bytes within {bytes, path}, whose path may be all that there is.
  images = [k for k in images if k.rpartition("/")[0] not in (*images, *lists)]
  images = images or lists
  held = {} if images else _held_in_texts(kinds, head)
  images = images or [k for k, how in held.items() if how != "url"]
  try:
    return choose("image_key", images, _IMAGES, where, [*kinds])
  except UserError as error:
    urls = [k for k, how in held.items() if how == "url"]
    if images or not urls:
      raise
    raise UserError(
      f"{error}; {', '.join(urls)} holds URLs, which are not fetched here:"
      " img2dataset downloads them"
    ) from error


def _held_in_texts(kinds: Kinds, head) -> dict[str, str]:
  """Returns how columns of text hold images: see `kind_of`."""
  texts = [k for k, t in kinds.items() if is_text(t) and not _is_list(t)]
  rows = head(texts) if texts else []
  held = {}
  for key in texts:
    found = {kind_of(dig(row, key)) for row in rows if dig(row, key)}
    if len(found) == 1 and None not in found:
      held[key] = found.pop()
  return held


def find_label(kinds: Kinds, image: str) -> str | None:
  """Returns the column of words that are labels, if it is the only text."""
  texts = _texts(kinds, image, None)
  return texts[0] if len(texts) == 1 and texts[0] in LABEL_NAMES else None


def find_texts(
  kinds: Kinds,
  image: str,
  label: str | None,
  names: Sequence[str] | None,
  where: str,
  options: Options,
) -> tuple[str, ...]:
  """Returns the column of texts, or that of the label where there is none.

  Args:
    kinds: of all columns.
    image: the column of images.
    label: that of labels.
    names: what these mean, as the files say.
    where: what messages call the files.
    options: say whether texts are needed.

  Raises:
    UserError: there is none, or there are several.
  """
  texts = _texts(kinds, image, label)
  unclear = names and not set(texts) & set(TEXT_NAMES)
  if label and (unclear or (not texts and is_text(kinds[label]))):
    return (label,)
  if not set(texts) & set(TEXT_NAMES) and (found := alike(texts, TEXT_NAMES)):
    return found
  return choose_text(options, texts, TEXT_NAMES, where, [*kinds])


def _texts(kinds: Kinds, image: str, label: str | None) -> list[str]:
  inner = f"{image}/"  # The path beside the bytes.
  return [
    k
    for k, t in kinds.items()
    if is_text(t)
    and k not in (*NAME_NAMES, image, label)
    and "url" not in k.lower()
    and not k.startswith(inner)
  ]


def flatten(fields, prefix: str = "") -> Iterator[tuple[str, pa.DataType]]:
  """Yields the type of every column by path, parents of nested ones too."""
  for field in fields:
    kind = field.type
    yield f"{prefix}{field.name}", kind
    if _is_list(kind):
      kind = kind.value_type
    if pa.types.is_struct(kind):
      yield from flatten(kind.fields, f"{prefix}{field.name}/")


def _is_list_of_images(kind: pa.DataType) -> bool:
  """Whether it is that, or a list of bytes, or of pixels [H, W, 3]."""
  if not _is_list(kind):
    return False
  inner = kind.value_type
  if not _is_list(inner):
    return pa.types.is_uint8(inner) or _is_image(inner)
  row = inner.value_type
  return _is_list(row) and pa.types.is_integer(row.value_type)


def _is_image(kind: pa.DataType) -> bool:
  if not pa.types.is_struct(kind):
    return _is_binary(kind)
  names = [field.name for field in kind.fields]
  if "bytes" not in names:
    return False
  inner = kind.field("bytes").type  # None in all rows, beside a path.
  return _is_binary(inner) or (pa.types.is_null(inner) and "path" in names)


def _is_list(kind: pa.DataType) -> bool:
  return (
    pa.types.is_list(kind)
    or pa.types.is_large_list(kind)
    or pa.types.is_fixed_size_list(kind)
  )


def _is_binary(kind: pa.DataType) -> bool:
  return (
    pa.types.is_binary(kind)
    or pa.types.is_large_binary(kind)
    or pa.types.is_binary_view(kind)
  )


def is_text(kind: pa.DataType) -> bool:
  """Whether a column holds texts, or lists of them."""
  if _is_list(kind):
    kind = kind.value_type
  if pa.types.is_dictionary(kind):  # What pandas calls categories.
    kind = kind.value_type
  return (
    pa.types.is_string(kind)
    or pa.types.is_large_string(kind)
    or pa.types.is_string_view(kind)
  )


def class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
  """Returns what `datasets` wrote of the labels it knows, nested ones too."""
  try:
    text = (schema.metadata or {})[b"huggingface"]
    features = json.loads(text)["info"]["features"]
  except (KeyError, ValueError, TypeError):
    return {}
  return dict(_class_names(features, ""))


def _class_names(
  feature: Any, path: str
) -> Iterator[tuple[str, tuple[str, ...]]]:
  """Yields the names of labels by their paths.

  Lists are {"_type": "Sequence", "feature": ...}, "List", or [...].
  """
  if isinstance(feature, list):
    for inner in feature[:1]:
      yield from _class_names(inner, path)
  elif not isinstance(feature, dict):
    return
  elif feature.get("_type") == "ClassLabel":
    yield path, tuple(feature["names"])
  elif isinstance(feature.get("_type"), str):
    yield from _class_names(feature.get("feature"), path)
  else:
    for name, inner in feature.items():
      yield from _class_names(inner, f"{path}/{name}" if path else name)
