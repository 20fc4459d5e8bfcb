"""Images of a folder; images and texts of what `data.sources` opens."""

import os
import pathlib

from big_siglip import extras
from big_siglip.data.sources import open_source, Options, Source
from big_siglip.data.sources.example import choose, TEXT_NAMES
from big_siglip.data.sources.folder import Listing
from big_siglip.data.sources.nested import as_texts, dig
from big_siglip.data.sources.storage import Storage
from big_siglip.errors import BadExample, naming, UserError
from big_siglip.schema.sources import NAMES

_SHARDS = {
  "tar": (".tar",),
  "parquet": (".parquet",),
  "arrayrecord": (".array_record", ".arrayrecord", ".array_record-"),
}
_TFDS = {"dataset_info.json", "features.json"}


def find_format(path: str, texts: bool = False) -> str | None:
  """Returns the format of a data set, seen from names; None: it is none.

  Shards are known by their endings, and a folder by what lies in it, unless
  that is images.

  Args:
    path: a file, a folder or a pattern of shards.
    texts: whether texts are looked for: then a folder of images may have some.
  """
  last = os.path.basename(path.rstrip("/")).lower()
  if name := _of_file(last):
    return name
  place = pathlib.Path(path).expanduser()
  if not place.is_dir():
    return None
  names = sorted(os.listdir(place))
  if set(names) >= _TFDS:
    return "tfds"
  shards = next(filter(None, map(_of_file, map(str.lower, names))), None)
  if texts:
    return shards or "folder"
  # A table of images may lie beside them.
  return shards if shards and not find_images(place) else None


def find_images(folder: pathlib.Path) -> tuple[str, ...]:
  """Returns the paths of all images below a folder, from it on, sorted.

  As everywhere: they are known by their names, links to folders are followed,
  and what is hidden is left out.
  """
  return Listing(str(folder), Storage()).images


def _of_file(name: str) -> str | None:
  for kind, endings in _SHARDS.items():
    if any(name.endswith(e) or (e[-1] == "-" and e in name) for e in endings):
      return kind
  return None


def open_images(
  path: str, data: str, split: str | None, field: str | None, flag: str
) -> Source:
  """Returns the examples of a data set, which need not have texts.

  Args:
    path: where it lies.
    data: its format.
    split: None: all.
    field: that holds the images; None: found by its type.
    flag: what messages call the path.

  Raises:
    UserError: it cannot be opened.
  """
  options = Options(image_key=field, needs_texts=False)
  with naming(_flags(flag, "image_key")):
    _check(data)
    return open_source(data, split or "all", path, options)


def read_texts(
  path: str, data: str, split: str | None, field: str | None
) -> list[list[str]]:
  """Returns the texts of each row or example of a data set.

  Args:
    path: where it lies.
    data: its format; Parquet files need not have images.
    split: None: all.
    field: that holds them; None: found by its type and name.

  Raises:
    UserError: it cannot be opened.
  """
  with naming(_flags("--texts", "text_keys")):
    _check(data)
    if data == "parquet":
      return _texts_of_parquet(path, field)
    options = Options(text_keys=(field,) if field else ())
    source = open_source(data, split or "all", path, options)
    return [list(found) for found in source.texts()]


def _flags(flag: str, key: str) -> dict[str, str]:
  return {
    "config.data.path": flag,
    "config.data.name": "--data",
    "config.data.split": "--split",
    f"config.data.{key}": "--column",
  }


def _check(data: str) -> None:
  if data == "embeddings":
    allowed = ", ".join(name for name in NAMES if name != data)
    raise UserError(f"config.data.name={data!r}: must be one of {allowed}")


def _texts_of_parquet(path: str, field: str | None) -> list[list[str]]:
  with extras.needed_by(path):
    import pyarrow as pa
    import pyarrow.parquet as pq
  storage, found = Storage(), []
  for file in storage.expand(path, (".parquet",)):
    try:
      with storage.open(file) as stream:
        parquet = pq.ParquetFile(stream)
        field = field or _text_column(parquet.schema_arrow, file)
        names = parquet.schema_arrow.names
        column = field if field in names else field.split("/")[0]
        if column not in names:
          raise UserError(
            f"config.data.text_keys={field!r}: {file} has no such column; "
            f"there are: {', '.join(names)}"
          )
        rows = parquet.read([column]).to_pylist()
    except BadExample as error:
      raise UserError(f"config.data.path={path!r}: {error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
      reason = str(error).strip().splitlines()[0]
      raise UserError(f"config.data.path={file!r}: {reason}") from error
    found += [as_texts(dig(row, field)) for row in rows]
  return found


def _text_column(schema, file: str) -> str:
  import pyarrow as pa

  names = schema.names
  found = [name for name in TEXT_NAMES if name in names]
  text = (pa.types.is_string, pa.types.is_large_string)
  found = found or [f.name for f in schema if any(is_(f.type) for is_ in text)]
  return choose("text_keys", found, TEXT_NAMES, file, names)
