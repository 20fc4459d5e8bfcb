"""An image as data sets store it: bytes, a path, base64, a list."""

import base64
import binascii
from collections.abc import Callable, Mapping
import io
import os
import re
from typing import Any

import numpy as np
from PIL import Image

from big_siglip.data.image_files import is_image, looks_like_image
from big_siglip.data.sources.storage import is_remote, Storage
from big_siglip.errors import BadExample

_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\-\s]{32,}")
_URL = re.compile(r"https?://", re.IGNORECASE)

Read = Callable[[str], bytes]  # A path, as data name it -> bytes.


def as_image(value: Any, read: Read | None = None) -> bytes | np.ndarray:
  """Returns the bytes of an image, or its embedding.

  Args:
    value: bytes; an embedding; the Hub's {bytes, path}; a path; base64, also as
      a data URI; a list of bytes or of pixels [H, W, 3], or of one image.
    read: reads a path; None: there is nothing to read.

  Raises:
    BadExample: it is none of these, or is not there.
  """
  if isinstance(value, bytes | np.ndarray):
    return value
  if isinstance(value, Mapping):
    return as_image(value.get("bytes") or value.get("path"), read)
  if isinstance(value, str) and value.strip():
    return _from_text(value.strip(), read)
  if isinstance(value, list | tuple) and value:
    return _from_list(value, read)
  raise BadExample("holds no image", "image")


def kind_of(value: Any) -> str | None:
  """Returns how a text holds an image: "path", "base64" or "url"; None: not."""
  if not isinstance(value, str) or not value.strip():
    return None
  text = value.strip()
  if _URL.match(text):
    return "url"
  if _from_base64(text) is not None:
    return "base64"
  return "path" if is_image(text) and len(text) < 4_096 else None


def _from_text(text: str, read: Read | None) -> bytes:
  if _URL.match(text):
    raise BadExample(
      f"its image is the URL {text[:100]}, which is not fetched here", "missing"
    )
  if (data := _from_base64(text)) is not None:
    return data
  if read is None or len(text) > 4_096:
    raise BadExample("holds no image", "image")
  return read(text)


def _from_base64(text: str) -> bytes | None:
  """Returns what a text holds if it is an image in base64."""
  uri = _DATA_URI.match(text)
  if uri:
    text = text[uri.end() :]
  elif not _BASE64.match(text):
    return None
  text = text.replace("-", "+").replace("_", "/")
  try:
    head = base64.b64decode(text[:32])
    if not uri and not looks_like_image(head):
      return None
    return base64.b64decode(text)
  except (binascii.Error, ValueError):
    return None


def _from_list(value: Any, read: Read | None) -> bytes | np.ndarray:
  if len(value) == 1 and not isinstance(value[0], int | list):
    return as_image(value[0], read)
  try:
    if isinstance(value[0], int):
      return bytes(value)
    if isinstance(value[0], list):
      pixels = np.array(value)
      if pixels.dtype.kind in "iu" and pixels.ndim in (2, 3):
        if pixels.min() < 0 or pixels.max() > 255:
          raise ValueError
        return _encoded(pixels.astype(np.uint8))
  except (ValueError, TypeError) as error:
    raise BadExample("its list holds no image", "image") from error
  raise BadExample(f"holds a list of {len(value)}, must be one image", "image")


def _encoded(pixels: np.ndarray) -> bytes:
  """Returns a PNG of [H, W] or [H, W, C]."""
  if pixels.ndim == 3 and pixels.shape[2] == 1:
    pixels = pixels[..., 0]
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png")
  return file.getvalue()


def read_beside(path: str, file: str, storage: Storage) -> bytes:
  """Reads an image that a file names, from where it lies.

  That is the path itself, or the path from the file's folder or its images/; of
  an absolute path that is not here, as much of its end as lies there.

  Raises:
    BadExample: it is not there, or not reached.
  """
  folder = os.path.dirname(file)
  path = path.replace("\\", "/")
  absolute = path.startswith("/") or path[1:3] == ":/" or is_remote(path)
  names = [path.lstrip("/")]
  if absolute:
    parts = re.sub(r"^[A-Za-z][\w+.-]*:/*", "", path).strip("/").split("/")
    names = ["/".join(parts[i:]) for i in range(len(parts))]
  places = [path] if path.startswith("/") else []
  for name in names:
    places += [os.path.join(folder, name), os.path.join(folder, "images", name)]
  for place in places:
    try:
      return storage.read(place)
    except BadExample as error:
      if error.kind != "missing":
        raise
  raise BadExample(
    f"its image {path!r} is a path, and no such file lies beside {file}",
    "missing",
  )
