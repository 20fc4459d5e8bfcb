"""Tar shards as img2dataset and WebDataset write them, read from end to end."""

from collections.abc import Iterator
import contextlib
import json
import tarfile
from typing import Any

from etils import epath

from big_siglip.data.image_files import EXTENSIONS, is_image
from big_siglip.data.sources.example import TEXT_NAMES
from big_siglip.data.sources.nested import as_texts, dig
from big_siglip.errors import UserError
from big_siglip.preparation.filters import Filters
from big_siglip.preparation.records import (
  Caption,
  Fault,
  ImageLimits,
  Record,
  take_image,
  Tally,
)

IMAGES = (*EXTENSIONS, "img")
_TEXTS = ("txt", "json")
# Fields of the .json, spelt as img2dataset and LAION's tables do.
_LANGUAGES = ("language", "lang", "LANGUAGE")
_LICENSES = ("license", "LICENSE")
_LARGEST = 2**36  # Bytes of a member; a damaged header may say anything.
_CAPTIONS = ("txt", *TEXT_NAMES)  # Taken unless told otherwise: the first.
_LARGEST_HEADER = 2**18  # Bytes of a long name, or of PAX's fields.
_AT_ONCE = 2**20  # Bytes that are read, or passed over.
_NAMES = (  # Members that say something of the next one.
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
  tarfile.SOLARIS_XHDTYPE,
)


class _Header(tarfile.TarInfo):
  """A header; one that is none is an error wherever it stands.

  tarfile takes any but the first for the end of the archive, and all that
  follows would be lost without a word.
  """

  @classmethod
  def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
    """Reads one from its bytes.

    Raises:
      tarfile.ReadError: it tells of no sane size.
    """
    header = super().frombuf(buf, encoding, errors)
    largest = _LARGEST_HEADER if header.type in _NAMES else _LARGEST
    if not 0 <= header.size <= largest:  # tarfile would skip it, for years.
      raise tarfile.ReadError(f"a member of {header.size} bytes")
    return header

  @classmethod
  def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
    """Reads the next one.

    Raises:
      tarfile.ReadError: it is damaged, or cut off, or tells of no sane size.
    """
    try:
      header = super().fromtarfile(tar)
    except (
      tarfile.InvalidHeaderError,
      tarfile.TruncatedHeaderError,
      ValueError,  # Of PAX's fields: numbers that are none, or endless.
      OverflowError,
    ) as error:
      raise tarfile.ReadError(f"no tar header: {error}") from error
    if not 0 <= header.size <= _LARGEST:  # As PAX's fields have it.
      raise tarfile.ReadError(f"a file of {header.size} bytes")
    return header


def check_file(path: epath.Path) -> None:
  """Looks at the first member of a shard.

  Raises:
    UserError: not a tar file, or an empty one.
  """
  try:
    with _opened(path) as tar:
      first = tar.next()
  except (tarfile.TarError, EOFError, OSError) as error:
    raise UserError(f"{path}: cannot be read as tar ({error})") from error
  if first is None:
    raise UserError(f"{path}: holds no members")


def read(
  path: epath.Path,
  captions: tuple[str, ...],
  filters: Filters,
  tally: Tally,
  limits: ImageLimits,
) -> Iterator[Record]:
  """Yields the examples that stay, with their images.

  An example is all members with one name up to the first dot of its last
  part, one after another: KEY.jpg, KEY.txt, KEY.json.

  Args:
    path: a shard, packed or not.
    captions: "txt" and names of fields of the .json; empty: the .txt, or the
      field that training would take where there is none.
    filters: what stays.
    tally: counts the rest; a shard that ends early is a fault of its own.
    limits: of images; no other member may be larger, either.
  """
  for key, members in _examples(path, tally, limits.max_bytes):
    tally.count("rows")
    try:
      record = _read_example(path, key, members, captions, filters, tally)
      if record is None:
        continue
      image, facts = take_image(record.image, limits)
    except Fault as fault:
      tally.fault(fault, f"{path.name}/{key}")
      continue
    if filters.keep_image(facts.width, facts.height, facts.mime_type, tally):
      yield record.with_image(image)


def _examples(
  path: epath.Path, tally: Tally, max_bytes: int
) -> Iterator[tuple[str, dict[str, bytes | Fault]]]:
  key, members = None, {}
  try:
    with _opened(path) as tar:
      for member in tar:
        name, suffix = _split(member.name)
        if not member.isfile() or not (_is_image(suffix) or _is_text(suffix)):
          continue
        if name != key:
          if members:
            yield key, members
          key, members = name, {}
        if member.size > max_bytes:
          members[suffix] = Fault("too_large", f"{member.size} bytes")
        else:
          members[suffix] = tar.extractfile(member).read()
  except (tarfile.TarError, EOFError, OSError) as error:
    # What was read of the last example may lack a part.
    where = f"{path.name} from {key or 'its start'} on"
    tally.fault(Fault("damaged_shard", str(error)), where)
    return
  if members:
    yield key, members


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[tarfile.TarFile]:
  with (
    path.open("rb") as f,
    tarfile.open(
      fileobj=f, mode="r|*", tarinfo=_Header, bufsize=_AT_ONCE
    ) as tar,
  ):
    yield tar


def _split(name: str) -> tuple[str, str]:
  folder, slash, file = name.rpartition("/")
  stem, _, suffix = file.partition(".")
  return folder + slash + stem, suffix.lower()


def _read_example(path, key, members, columns, filters, tally) -> Record | None:
  image = _image(members)
  for member in members.values():
    if isinstance(member, Fault):
      raise member
  if not image:
    raise Fault("no_image", f"has only {', '.join(sorted(members))}")
  fields = _fields(members)
  if not columns:
    texts = [c for c in fields if c.endswith(".txt")]
    columns = [c for c in (*_CAPTIONS, *texts) if c in fields][:1]
  language = _first(fields, _LANGUAGES)
  captions = []
  for column in columns:
    for text in as_texts(dig(fields, column)):
      page_url = _first(fields, ("page_url",))
      captions.append(Caption(_text(text), language, page_url))
  captions = filters.keep_captions(captions, tally)
  if not captions:
    tally.count("filtered: no caption left")
    return None
  # A key may hold any bytes, and a data set's text is UTF-8.
  key = key.encode("utf-8", "backslashreplace").decode()
  return Record(
    name=f"{path.name}/{key}",
    captions=tuple(captions),
    image_url=_first(fields, ("image_url", "url")),
    metadata_url=_first(fields, ("metadata_url",)),
    attribution=_first(fields, ("attribution",)),
    license=_first(fields, _LICENSES),
    image=image,
  )


def _is_image(suffix: str) -> bool:
  return suffix in IMAGES or is_image(f".{suffix}")


def _is_text(suffix: str) -> bool:
  return suffix in _TEXTS or suffix.endswith(".txt")


def _image(members: dict[str, bytes | Fault]) -> bytes | Fault | None:
  """Returns the image; NAME.input.jpg is one where it is the only one.

  Raises:
    Fault: several could be it.
  """
  for suffix in IMAGES:
    if suffix in members:
      return members[suffix]
  found = [suffix for suffix in members if _is_image(suffix)]
  if len(found) > 1:
    raise Fault("no_image", f"several could be it: {', '.join(found)}")
  return members[found[0]] if found else None


def _fields(members: dict[str, bytes]) -> dict[str, Any]:
  fields = {}
  if "json" in members:
    try:
      fields = json.loads(members["json"])
    except (ValueError, RecursionError) as error:  # Also: not UTF-8.
      raise Fault("bad_json", str(error)) from error
    if not isinstance(fields, dict):
      raise Fault("bad_json", "is no object")
  for suffix, data in members.items():
    if _is_text(suffix) and suffix != "json":
      fields[suffix] = data.decode("utf-8", "replace")
  return fields


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> str:
  return next((_text(fields[n]) for n in names if n in fields), "")


def _text(value: Any) -> str:
  if not isinstance(value, str):
    return ""
  # JSON may hold halves of surrogate pairs, which UTF-8 cannot.
  return value.encode("utf-8", "replace").decode()
