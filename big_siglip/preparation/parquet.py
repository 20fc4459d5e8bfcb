"""Parquet with image bytes, as the Hugging Face hub keeps it; also wit_base."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from etils import epath
import pyarrow as pa
import pyarrow.parquet as pq

from big_siglip.data.sources.example import TEXT_NAMES
from big_siglip.data.sources.nested import as_texts, dig
from big_siglip.data.sources.storage import Storage
from big_siglip.data.sources.stored_images import as_image, read_beside
from big_siglip.data.tables import to_rows
from big_siglip.errors import BadExample, UserError
from big_siglip.preparation import wit
from big_siglip.preparation.filters import Filters
from big_siglip.preparation.records import (
  Caption,
  Fault,
  ImageLimits,
  Record,
  take_image,
  Tally,
)

IMAGE_COLUMNS = ("image", "jpg", "png", "webp", "img", "image_bytes")
CAPTION_COLUMNS = TEXT_NAMES
_LANGUAGE_COLUMNS = ("language", "lang", "LANGUAGE")
_URL_COLUMNS = ("image_url", "url", "URL")
_OTHERS = ("page_url", "metadata_url", "attribution", "license")
_WIT = "wit_features"
_BATCH = 16  # Rows: images of full size are some megabytes each.


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of a file hold what; None where it has none such."""

  image: str
  captions: tuple[str, ...]
  language: str | None
  url: str | None
  present: tuple[str, ...]
  is_wit: bool

  @property
  def all(self) -> list[str]:
    """Those to read: wit_base also has embeddings, larger than its images."""
    names = {self.image, self.language, self.url, *self.captions, *_OTHERS}
    names |= {caption.split("/")[0] for caption in self.captions}
    if self.is_wit:
      names |= {_WIT, wit.ATTRIBUTION}
    return [name for name in self.present if name in names]


def find_columns(
  path: epath.Path,
  captions: tuple[str, ...],
  image: str | None,
  is_wit: bool,
  languages: tuple[str, ...],
) -> Columns:
  """Looks at a file's schema.

  Args:
    path: the file.
    captions: columns to take; empty: the first there is of `CAPTION_COLUMNS`,
      or wit_base's own.
    image: the column of images; None: the first of `IMAGE_COLUMNS`.
    is_wit: whether it must be a file of wikimedia/wit_base.
    languages: those to be kept: then there must be a column of languages.

  Raises:
    UserError: not Parquet, no rows, or a column is missing.
  """
  try:
    with path.open("rb") as f:
      file = pq.ParquetFile(f)
      present, rows = tuple(file.schema_arrow.names), file.metadata.num_rows
  except (pa.ArrowException, OSError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(f"{path}: cannot be read as Parquet ({reason})") from error
  if not rows:
    raise UserError(f"{path}: holds no rows")
  named = (image,) if image else IMAGE_COLUMNS
  found = Columns(
    image=_first(path, present, named, "of images (--image_column)"),
    captions=captions if not is_wit else captions or wit.CAPTIONS,
    language=next((c for c in _LANGUAGE_COLUMNS if c in present), None),
    url=next((c for c in _URL_COLUMNS if c in present), None),
    present=present,
    is_wit=is_wit,
  )
  if is_wit:
    _first(path, present, (_WIT,), "of wit_base")
    return found
  if languages and not found.language:
    _first(path, present, _LANGUAGE_COLUMNS, "of languages (--languages)")
  for caption in captions:
    # Or a path within a column.
    names = dict.fromkeys([caption, caption.split("/")[0]])
    _first(path, present, (*names,), "of captions (--captions)")
  if not captions:
    first = _first(path, present, CAPTION_COLUMNS, "of captions (--captions)")
    found = dataclasses.replace(found, captions=(first,))
  return found


def read(
  path: epath.Path,
  columns: Columns,
  filters: Filters,
  tally: Tally,
  limits: ImageLimits,
) -> Iterator[Record]:
  """Yields the rows that stay, with their images.

  Args:
    path: the file.
    columns: from `find_columns`.
    filters: what stays.
    tally: counts the rest; a damaged row group is a fault of its own.
    limits: of images.
  """
  for number, row in _rows(path, columns, tally):
    tally.count("rows")
    where = f"{path.name} row {number}"
    try:
      if row is None:
        raise Fault("bad_row", "holds text that is no UTF-8")
      record = _read_row(path, number, row, columns, filters, tally)
      if record is None:
        continue
      image, facts = take_image(record.image, limits)
    except Fault as fault:
      tally.fault(fault, where)
      continue
    if filters.keep_image(facts.width, facts.height, facts.mime_type, tally):
      yield record.with_image(image)


def _first(path, present, names, what) -> str:
  for name in names:
    if name in present:
      return name
  raise UserError(
    f"{path}: missing column {what}: {' or '.join(names)}; it has: "
    f"{', '.join(present)}"
  )


def _rows(
  path: epath.Path, columns: Columns, tally: Tally
) -> Iterator[tuple[int, dict[str, Any] | None]]:
  with path.open("rb") as f:
    file = pq.ParquetFile(f)
    number = 0
    for group in range(file.num_row_groups):
      end = number + file.metadata.row_group(group).num_rows
      try:
        for batch in file.iter_batches(_BATCH, [group], columns.all):
          for row in to_rows(batch):
            yield number, row
            number += 1
      except (pa.ArrowException, OSError) as error:
        where = f"{path.name} rows {number} to {end - 1}"
        reason = str(error).splitlines()[0]
        tally.fault(Fault("damaged_row_group", reason), where)
      number = end


def _read_row(path, number, row, columns, filters, tally) -> Record | None:
  try:
    image = as_image(
      row[columns.image],
      lambda name: read_beside(name, str(path), Storage(retry_seconds=0)),
    )
  except BadExample as error:
    raise Fault("no_image", str(error)) from error
  captions = _wit_captions if columns.is_wit else _captions
  captions = filters.keep_captions(captions(row, columns), tally)
  if not captions:
    tally.count("filtered: no caption left")
    return None
  url = _text(row.get(columns.url))
  metadata_url = _text(row.get("metadata_url")) or wit.licence_page(url)
  attribution = wit.ATTRIBUTION if columns.is_wit else "attribution"
  return Record(
    name=url if columns.is_wit and url else f"{path.name}/{number}",
    captions=tuple(captions),
    image_url=url,
    metadata_url=metadata_url,
    attribution=_text(row.get(attribution)),
    license=_text(row.get("license")),
    image=image,
  )


def _captions(row: dict[str, Any], columns: Columns) -> list[Caption]:
  language = _text(row.get(columns.language))
  captions = []
  for column in columns.captions:
    for text in as_texts(dig(row, column)):
      captions.append(
        Caption(_text(text), language, _text(row.get("page_url")))
      )
  return captions


def _wit_captions(row: dict[str, Any], columns: Columns) -> list[Caption]:
  articles = row[_WIT] or []
  if isinstance(articles, dict):  # A list of each field, not of structs.
    names = articles.keys()
    articles = [
      dict(zip(names, values, strict=True))
      for values in zip(*articles.values(), strict=True)
    ]
  captions = []
  for article in articles:
    language = _text(article.get("language"))
    for column in columns.captions:
      # wit_base has the attribution once an image, not once an article.
      text, known = article.get(column), language
      if column == wit.ATTRIBUTION:
        text = row.get(column)
        if not wit.is_true(article.get("attribution_passes_lang_id")):
          known = ""
      page_url = _text(article.get("page_url"))
      captions.append(Caption(_text(text), known, page_url))
  return captions


def _text(value: Any) -> str:
  return value if isinstance(value, str) else ""
