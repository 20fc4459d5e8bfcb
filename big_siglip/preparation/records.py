"""What the readers of every format return, and how they count the rest."""

import collections
import dataclasses
import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from big_siglip.data import images
from big_siglip.errors import UserError

# 128 bits: of a billion names no two share a key.
_KEY_DIGITS = 32
_JPEG_QUALITY = 95


class Fault(Exception):
  """Something that was to be an image, or a row, and is none.

  Attributes:
    kind: what faults are counted by, as "http_404" or "truncated".
    detail: one line for people.
    lasting: asking again would bring the same.
  """

  def __init__(self, kind: str, detail: str = "", lasting: bool = True):
    super().__init__(kind, detail, lasting)
    self.kind, self.detail, self.lasting = kind, detail, lasting


@dataclasses.dataclass(frozen=True)
class Caption:
  """One text about an image."""

  text: str
  language: str  # As Wikipedia's codes; "" where nobody knows.
  page_url: str = ""  # The article it stood in.

  def to_tuple(self) -> tuple[str, str, str]:
    """Returns its fields; dataclasses' own astuple takes ten times as long."""
    return self.text, self.language, self.page_url


@dataclasses.dataclass(frozen=True)
class Record:
  """One image, or where to fetch it, with all that is said of it."""

  name: str  # Unique within the data set; what logs call it.
  captions: tuple[Caption, ...]
  image_url: str = ""
  metadata_url: str = ""  # The page that states the image's licence.
  attribution: str = ""
  license: str = ""
  image: bytes | None = None  # None: to be fetched from `image_url`.

  @property
  def key(self) -> str:
    """A hash of the name: the order of examples, and their split."""
    return key_of(self.name)

  def with_image(self, image: bytes) -> "Record":
    """Returns the same with its image."""
    return dataclasses.replace(self, image=image)

  def to_json(self) -> dict[str, Any]:
    """Returns what `from_json` reads, without the image."""
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name != "image"
    }
    fields["captions"] = [c.to_tuple() for c in self.captions]
    return fields

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> "Record":
    """Reads what `to_json` wrote."""
    captions = tuple(Caption(*caption) for caption in fields["captions"])
    return cls(**{**fields, "captions": captions})


class Tally:
  """Counts by kind, and a list of all faults with their place.

  Attributes:
    counts: {kind: number}; kinds of faults start with "fault: ", of what the
      filters dropped with "filtered: ".
    faults: {"kind", "where", "detail", "lasting"} each.
  """

  def __init__(self):
    self.counts: collections.Counter[str] = collections.Counter()
    self.faults: list[dict[str, str]] = []

  def count(self, kind: str, number: int = 1) -> None:
    """Counts something that is no fault."""
    self.counts[kind] += number

  def fault(self, fault: Fault, where: str) -> None:
    """Counts and lists a fault of the file, row or URL `where`."""
    self.counts[f"fault: {fault.kind}"] += 1
    self.faults.append(
      {
        "kind": fault.kind,
        "where": where,
        "detail": fault.detail,
        "lasting": fault.lasting,
      }
    )

  def to_json(self) -> dict[str, Any]:
    """Returns what `add` takes."""
    return {"counts": dict(self.counts), "faults": self.faults}

  def add(self, fields: dict[str, Any]) -> None:
    """Adds another tally, from its `to_json`."""
    self.counts.update(fields["counts"])
    self.faults.extend(fields["faults"])


@dataclasses.dataclass(frozen=True)
class ImageLimits:
  """What an image may be, and what becomes of large ones.

  Attributes:
    max_bytes: of its file.
    max_pixels: larger ones are refused before they are decoded.
    shrink_to: pixels of the shorter side: larger images are shrunk and stored
      as JPEG; None: all images stay what they are, to the byte.
  """

  max_bytes: int = 50_000_000
  max_pixels: int = images.MAX_PIXELS
  shrink_to: int | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None and value < 1:
        raise UserError(f"--{field.name}={value}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class Facts:
  """What the bytes of an image said, whatever was claimed of them."""

  width: int
  height: int
  mime_type: str


def key_of(name: str) -> str:
  """Returns 32 hexadecimal digits that stand for a name."""
  digest = hashlib.sha256(name.encode("utf-8", "surrogatepass"))
  return digest.hexdigest()[:_KEY_DIGITS]


def take_image(data: bytes, limits: ImageLimits) -> tuple[bytes, Facts]:
  """Returns what is kept of an image, and what it was.

  It is decoded whole, so that none that is broken gets into a data set.

  Raises:
    Fault: "no_image", "too_large", "not_an_image", "too_many_pixels", or
      "broken_image" where bytes are missing or damaged.
  """
  if not data:
    raise Fault("no_image", "holds no bytes")
  if len(data) > limits.max_bytes:
    raise Fault("too_large", f"{len(data)} bytes")
  try:
    with Image.open(io.BytesIO(data)) as image:
      width, height = image.size
      mime_type = image.get_format_mimetype() or ""
  except UnidentifiedImageError as error:
    shown = data[:16].decode("latin-1").strip()
    raise Fault("not_an_image", f"starts with {shown!r}") from error
  except Image.DecompressionBombError as error:
    raise Fault("too_many_pixels", str(error)) from error
  except Exception as error:  # Pillow's own for damaged bytes are many.
    raise Fault("broken_image", f"{type(error).__name__}: {error}") from error
  if width * height > limits.max_pixels:
    raise Fault("too_many_pixels", f"{width}x{height}")
  try:
    pixels = images.decode(data, limits.max_pixels)
  except images.BadImage as error:
    raise Fault("broken_image", str(error)) from error
  if limits.shrink_to and min(width, height) > limits.shrink_to:
    data = _shrink(pixels, limits.shrink_to)
  return data, Facts(width, height, mime_type)


def _shrink(pixels: np.ndarray, side: int) -> bytes:
  height, width = pixels.shape[:2]
  scale = side / min(height, width)
  size = (max(side, round(height * scale)), max(side, round(width * scale)))
  # Antialiased; what training does to it later is another matter.
  small = Image.fromarray(images.resize(pixels, size, "bicubic"))
  file = io.BytesIO()
  small.save(file, "JPEG", quality=_JPEG_QUALITY)
  return file.getvalue()
