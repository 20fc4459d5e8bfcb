"""What is to be embedded: images or texts of files, or of a data set."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import numpy as np

from big_siglip.data import images
from big_siglip.data.sources import Source
from big_siglip.embeddings.given import (
  Known,
  Prepared,
  Seen,
  SIZE,
  STAMP,
  Stamp,
  unknown,
)
from big_siglip.errors import BadExample
from big_siglip.trained.inference import Model

_COMPARED = 64  # Examples of a data set that its fingerprint names.


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Images or texts of files, nothing of the images read yet; `AnyInputs`.

  Attributes:
    path: the folder of images, or the file that lists them or the texts.
    keys: paths of images, relative to the folder, or to that of the list; or
      numbers of lines.
    texts: one for each key; None: these are images.
    data: the format of the data set that texts are of, or "".
    captions: of images, one for each key; None: there are none.
    others: a table's other columns, of a value for each key.
  """

  path: pathlib.Path
  keys: Sequence[str]
  texts: Sequence[str] | None = None
  data: str = ""
  captions: Sequence[str | None] | None = None
  others: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

  @property
  def kind(self) -> str:
    """What they are: "images" or "texts"."""
    return "images" if self.texts is None else "texts"

  @functools.cached_property
  def columns(self) -> dict[str, str]:
    """See `AnyInputs.columns`."""
    others = {name: _type(values) for name, values in self.others.items()}
    if self.texts is None:
      return {**SIZE, **others, **STAMP}
    return {**others, "sha256": "string"}

  def __len__(self) -> int:
    return len(self.keys)

  def fingerprint(self) -> str:
    """Returns a hash of all keys and texts, in their order."""
    digest = hashlib.sha256()
    for values in (self.keys, self.texts or ()):
      for value in values:
        digest.update(value.encode("utf-8", "surrogateescape") + b"\n")
      digest.update(b"\0")
    return digest.hexdigest()

  def look(self, index: int) -> Seen:
    """See `AnyInputs.look`."""
    fields = {name: values[index] for name, values in self.others.items()}
    if self.texts is not None:
      text = self.texts[index]
      stamp = Stamp(None, None, _sha256(_bytes(text)))
      return Seen(self.keys[index], text, stamp, fields)
    caption = self.captions[index] if self.captions else None
    stamp = None
    with contextlib.suppress(OSError, ValueError):
      stat = self._file(index).stat()
      stamp = Stamp(stat.st_size, stat.st_mtime_ns, None)
    return Seen(self.keys[index], caption, stamp, fields)

  def digest(self, index: int) -> str | None:
    """See `AnyInputs.digest`."""
    if self.texts is not None:
      return _sha256(_bytes(self.texts[index]))
    data = self.read(index)
    return None if data is None else _sha256(data)

  def read(self, index: int) -> bytes | None:
    """See `AnyInputs.read`."""
    if self.texts is not None:
      return None
    try:
      return self._file(index).read_bytes()
    except (OSError, ValueError):
      return None

  def prepare(
    self, model: Model, index: int, known: Known = unknown
  ) -> Prepared:
    """See `AnyInputs.prepare`; an image is read and decoded."""
    seen = self.look(index)  # Before it is read: what is written later is seen.
    one = Prepared(seen.key, seen.text, None, fields=_fields(seen))
    if self.texts is not None:
      if not self.texts[index].strip():
        return one._replace(problem="is empty")
      if (row := known(one.fields["sha256"])) is not None:
        return one._replace(embedding=row)
      return one._replace(array=model.preprocess.texts([seen.text or ""])[0])
    try:
      data = self._file(index).read_bytes()
    except OSError as error:  # Its own words hold the path again.
      return one._replace(problem=error.strerror or str(error))
    return _prepare_image(model, one, data, known)

  def _file(self, index: int) -> pathlib.Path:
    folder = self.path if self.path.is_dir() else self.path.parent
    file = folder / self.keys[index]
    if not file.exists():  # Captions name images in images/ so, too.
      file = folder / "images" / self.keys[index]
    return file


@dataclasses.dataclass(frozen=True)
class DataImages:
  """The images of a data set; `AnyInputs`. Their keys are the examples' names.

  Attributes:
    path: where it lies.
    data: its format, one of `schema.sources.NAMES`.
    source: its examples.
  """

  path: str
  data: str
  source: Source
  kind = "images"

  @property
  def columns(self) -> dict[str, str]:
    """See `AnyInputs.columns`."""
    return {**SIZE, "file_bytes": "int64", "sha256": "string"}

  def __len__(self) -> int:
    return len(self.source)

  def fingerprint(self) -> str:
    """Returns a hash of how many there are, and of the names of some."""
    some = np.linspace(0, len(self) - 1, min(_COMPARED, len(self))).astype(int)
    digest = hashlib.sha256(f"{self.data} {len(self)}\n".encode())
    for index in some.tolist():
      try:
        name = self.source[index].name
      except BadExample as error:
        name = str(error)
      digest.update(name.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()

  def look(self, index: int) -> Seen:
    """See `AnyInputs.look`; the example is read."""
    one, data = self._read(index)
    stamp = Stamp(len(data), None, _sha256(data)) if data is not None else None
    return Seen(one.key, None, stamp, {})

  def digest(self, index: int) -> str | None:
    """See `AnyInputs.digest`."""
    data = self.read(index)
    return None if data is None else _sha256(data)

  def read(self, index: int) -> bytes | None:
    """See `AnyInputs.read`."""
    return self._read(index)[1]

  def prepare(
    self, model: Model, index: int, known: Known = unknown
  ) -> Prepared:
    """See `AnyInputs.prepare`; the example is read and decoded."""
    one, data = self._read(index)
    if data is None:
      return one
    one = one._replace(fields={"file_bytes": len(data)})
    return _prepare_image(model, one, data, known)

  def _read(self, index: int) -> tuple[Prepared, bytes | None]:
    """Returns what an example is called, and its image."""
    name = f"{self.path}#{index}"
    try:
      example = self.source[index]
    except BadExample as error:
      return Prepared(error.name or name, None, None, str(error)), None
    name = example.name.encode(errors="replace").decode()
    return Prepared(name, None, None), example.image


def _prepare_image(
  model: Model, one: Prepared, data: bytes, known: Known
) -> Prepared:
  fields = {**one.fields, "sha256": _sha256(data)}
  for name, pixels in zip(SIZE, images.size_of(data), strict=True):
    fields.setdefault(name, pixels)
  one = one._replace(fields=fields)
  if (row := known(fields["sha256"])) is not None:
    return one._replace(embedding=row)
  try:
    return one._replace(array=model.prepare_image(data))
  except BadExample as error:  # A BadImage as a rule.
    return one._replace(problem=str(error))


def _fields(seen: Seen) -> dict[str, Any]:
  stamp = seen.stamp._asdict() if seen.stamp else {}
  there = {name: value for name, value in stamp.items() if value is not None}
  return {**seen.fields, **there}


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _bytes(text: str) -> bytes:
  return text.encode("utf-8", "surrogateescape")


def _type(values: Sequence[Any]) -> str:
  """Returns the Arrow type of a column that `tables.columns_of` made."""
  there = next((v for v in values if v is not None), "")
  names = {bool: "bool", int: "int64", float: "double"}
  return names.get(type(there), "string")
