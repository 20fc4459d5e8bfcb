"""One input: as it is found, as a tower sees it; and what has many of them."""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any, NamedTuple, Protocol

import numpy as np

from big_siglip.trained.inference import Model

# Of images; a table's column of that name takes its place.
SIZE = {"width": "int32", "height": "int32"}
# Of patches of an image that keeps its shape.
GRID = {"grid_rows": "int32", "grid_columns": "int32"}
# What tells whether an input has changed.
STAMP = {"file_bytes": "int64", "file_mtime_ns": "int64", "sha256": "string"}
RESERVED = ("key", "text", "embedding", "id", *STAMP, *GRID)


class Stamp(NamedTuple):
  """By what an input is known again.

  Attributes:
    file_bytes: the size of its file, or of an example's image.
    file_mtime_ns: when its file was last written, nanoseconds since 1970; None
      where it has no file of its own.
    sha256: of its bytes; None: they were not read yet.
  """

  file_bytes: int | None
  file_mtime_ns: int | None
  sha256: str | None


class Seen(NamedTuple):
  """An input without its pixels.

  Attributes:
    key: what it is called.
    text: of an image its caption, where a table has one.
    stamp: None where its file is not there.
    fields: what a table says of it, by the names of `AnyInputs.columns`.
  """

  key: str
  text: str | None
  stamp: Stamp | None
  fields: Mapping[str, Any]


class Prepared(NamedTuple):
  """One input as a tower sees it, or why it cannot.

  Attributes:
    key: what it is called.
    text: of an image its caption, where a table has one.
    array: [H, W, 3] uint8 or [L] int32; None where there is a problem.
    problem: why it cannot be embedded, or "".
    fields: values of further columns, by their names.
    embedding: [E], where it is known already; then there is no array.
  """

  key: str
  text: str | None
  array: np.ndarray | None
  problem: str = ""
  fields: Mapping[str, Any] = {}
  embedding: np.ndarray | None = None


# What has embedded the same bytes before: from their sha256 to [E].
Known = Callable[[str], np.ndarray | None]


def unknown(sha256: str) -> None:
  """Returns None: nothing was embedded before."""
  del sha256


class AnyInputs(Protocol):
  """Images or texts in a fixed order.

  Attributes:
    path: where they lie.
    data: the format of the data set that they are of, one of
      `schema.sources.NAMES`, or "".
  """

  path: str | pathlib.Path
  data: str

  @property
  def kind(self) -> str:
    """What they are: "images" or "texts"."""

  @property
  def columns(self) -> dict[str, str]:
    """Further columns of their rows, and the Arrow types of these."""

  def __len__(self) -> int: ...

  def fingerprint(self) -> str:
    """Returns a hash of what they are."""

  def look(self, index: int) -> Seen:
    """Returns what one is; the bytes of a file are not read."""

  def digest(self, index: int) -> str | None:
    """Returns the sha256 of the bytes of one; None: they cannot be read."""

  def read(self, index: int) -> bytes | None:
    """Returns the bytes of an image; None: it is none, or cannot be read."""

  def prepare(
    self, model: Model, index: int, known: Known = unknown
  ) -> Prepared:
    """Returns one of them as a tower of the model sees it, if it is new."""
