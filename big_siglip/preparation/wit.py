"""Rows of WIT as Google publishes it: gzipped tables, images as URLs alone.

Columns and their meaning: google-research-datasets/wit, DATA.md; Srinivasan et
al. 2021 (arXiv:2103.01913), section 3.
"""

from collections.abc import Iterable, Iterator
import csv
import gzip
import io
import itertools
import json
import urllib.parse
import zlib

from etils import epath

from big_siglip.data.tables import allow_long_fields
from big_siglip.errors import UserError
from big_siglip.preparation.filters import Filters
from big_siglip.preparation.records import Caption, Fault, Record, Tally

REFERENCE = "caption_reference_description"
ATTRIBUTION = "caption_attribution_description"
ALT_TEXT = "caption_alt_text_description"
CAPTIONS = (REFERENCE, ATTRIBUTION, ALT_TEXT)  # Taken unless told otherwise.
MORE_CAPTIONS = (
  "page_title",
  "section_title",
  "hierarchical_section_title",
  "context_page_description",
  "context_section_description",
)
COLUMNS = (
  "language",
  "page_url",
  "image_url",
  *CAPTIONS,
  "mime_type",
  "original_height",
  "original_width",
  "attribution_passes_lang_id",
)
TEXT_LICENSE = "CC BY-SA 3.0"  # Of Wikipedia's texts; WIT's own terms.
# How gzip and zlib tell of damaged or missing bytes.
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, OSError)


def check_file(path: epath.Path, captions: tuple[str, ...]) -> None:
  """Looks at the first two rows of a shard.

  Raises:
    UserError: not gzip, or no rows, or one of the columns is missing.
  """
  with path.open("rb") as f:
    magic = f.read(2)
  if not magic:
    raise UserError(f"{path}: is empty")
  if magic != b"\x1f\x8b":
    raise UserError(f"{path}: is not gzip; must be one of wit_v1.*.tsv.gz")
  try:
    with _open(path) as f:
      rows = csv.reader(f, delimiter="\t")
      present = next(rows, [])
      first = next(rows, None)
  except (*_DAMAGED, csv.Error) as error:
    raise UserError(f"{path}: cannot be read ({error})") from error
  missing = [c for c in (*COLUMNS, *captions) if c not in present]
  if missing:
    raise UserError(
      f"{path}: missing column {', '.join(missing)}; it has: "
      f"{', '.join(present)[:200] or 'none'}"
    )
  if first is None:
    raise UserError(f"{path}: holds no rows")


def read(
  path: epath.Path, captions: tuple[str, ...], filters: Filters, tally: Tally
) -> Iterator[tuple[int, Record]]:
  """Yields (number of the line, what it says of one image), as filtered.

  Args:
    path: a shard.
    captions: the columns to take.
    filters: what stays.
    tally: counts the rest; a shard that ends early is a fault of its own.
  """
  with _open(path) as f:
    rows = csv.DictReader(f, delimiter="\t", restval="")
    while True:
      try:
        row = next(rows)
        tally.count("rows")
        record = _read_row(row, captions, filters, tally)
      except StopIteration:
        return
      except csv.Error as error:
        tally.fault(Fault("bad_row", str(error)), _place(path, rows))
      except Fault as fault:
        tally.fault(fault, _place(path, rows))
      except _DAMAGED as error:
        where = f"{_place(path, rows)} and all after it"
        tally.fault(Fault("damaged_shard", str(error)), where)
        return
      else:
        if record:
          yield rows.line_num, record


def merge(records: Iterable[Record]) -> Iterator[Record]:
  """Yields one record an image, with the captions of all its rows, each once.

  Args:
    records: sorted, so that those of one image stand together.
  """
  for url, group in itertools.groupby(records, key=lambda r: r.name):
    captions, attributions = {}, []
    for record in group:
      for caption in record.captions:
        captions.setdefault((caption.text, caption.language), caption)
      attributions.append(record.attribution)
    attribution = next(filter(None, attributions), "")
    yield _make_record(url, captions.values(), attribution)


def pack(record: Record) -> bytes:
  """Returns what `unpack` reads: for some tens of millions, on their way."""
  captions = [caption.to_tuple() for caption in record.captions]
  fields = (record.name, captions, record.attribution)
  return json.dumps(fields, ensure_ascii=False).encode()


def unpack(packed: bytes) -> Record:
  """Returns the record that was packed."""
  url, captions, attribution = json.loads(packed)
  return _make_record(url, [Caption(*c) for c in captions], attribution)


def licence_page(image_url: str) -> str:
  """Returns the page of an image on Wikipedia or Commons, or "".

  WIT says nothing of licences; that page does, and names the author.
  """
  try:
    parts = urllib.parse.urlsplit(image_url)
  except ValueError:  # "http://[/": its fault is told when it is asked for.
    return ""
  path = parts.path.split("/")
  if parts.hostname != "upload.wikimedia.org" or len(path) < 6:
    return ""
  if "thumb" in path[:4]:
    path = path[:-1]
  project, site, file = path[1], path[2], path[-1]
  if site == "commons":
    return f"https://commons.wikimedia.org/wiki/File:{file}"
  return f"https://{site}.{project}.org/wiki/File:{file}"


def is_true(value: str | bool | None) -> bool:
  """Reads the tables' "true" and "false"; wit_base has them as text, too."""
  return str(value).lower() == "true"


def _open(path: epath.Path) -> io.TextIOWrapper:
  allow_long_fields()
  # Not gzip.open, which takes no path of a bucket.
  unpacked = gzip.GzipFile(fileobj=path.open("rb"))
  return io.TextIOWrapper(
    unpacked, encoding="utf-8", errors="replace", newline=""
  )


def _place(path: epath.Path, rows: csv.DictReader) -> str:
  return f"{path.name} line {rows.line_num}"


def _read_row(
  row: dict, columns: tuple[str, ...], filters: Filters, tally: Tally
) -> Record | None:
  if None in row or not row["image_url"]:
    problem = "has no image_url" if None not in row else "too many fields"
    raise Fault("bad_row", problem)
  try:
    width, height = int(row["original_width"]), int(row["original_height"])
  except ValueError as error:
    raise Fault("bad_row", f"size of the image: {error}") from error
  language = row["language"]
  if filters.languages and language not in filters.languages:
    tally.count("filtered: row's language")
    return None
  if not filters.keep_image(width, height, row["mime_type"], tally):
    return None
  captions = []
  for column in columns:
    known = column != ATTRIBUTION or is_true(row["attribution_passes_lang_id"])
    captions.append(
      Caption(row[column] or "", language if known else "", row["page_url"])
    )
  captions = filters.keep_captions(captions, tally)
  if not captions:
    tally.count("filtered: no caption left")
    return None
  return _make_record(row["image_url"], captions, row[ATTRIBUTION])


def _make_record(
  url: str, captions: Iterable[Caption], attribution: str
) -> Record:
  return Record(
    name=url,
    captions=tuple(captions),
    image_url=url,
    metadata_url=licence_page(url),
    attribution=attribution,
  )
