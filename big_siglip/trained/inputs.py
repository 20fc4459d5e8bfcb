"""What a user gives a model to embed: lists of images and of texts.

What is no good is named in one line: the argument, the place in it, and what it
may be.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
import contextlib
import io
import itertools
import os
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from big_siglip.data import images as image_data
from big_siglip.data.batch import Image as PreparedImage
from big_siglip.data.batch import stack
from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import UserError
from big_siglip.progress import Progress, speaking

# What can be embedded as an image: the path of a file, the file itself, opened
# as "rb", or its bytes; a Pillow image, or uint8 [H, W, 3].
ImageLike = (
  str | os.PathLike[str] | bytes | io.BufferedIOBase | Image.Image | np.ndarray
)

_IMAGE = (
  'the path of a file, its bytes, a file opened as "rb", a Pillow image or '
  "uint8 [H, W, 3]"
)
# One of what a list was meant of, though some can be iterated over.
_ONE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, io.IOBase)
_UNORDERED = (Mapping, set, frozenset)  # Rows come back in the order of a list.
_SHOWN = 60  # Characters of a value in a message.
_T = TypeVar("_T")


def check_list(values: Any, name: str) -> int | None:
  """Returns how many values there are, None where only the end will tell.

  Args:
    values: a list, or anything else that can be iterated over in order.
    name: the argument.

  Raises:
    UserError: it is a single image or text, or no list at all.
  """
  one = isinstance(values, _ONE)
  if isinstance(values, np.ndarray):
    one = values.ndim < (4 if values.dtype == np.uint8 else 1)
  if one or isinstance(values, _UNORDERED) or not isinstance(values, Iterable):
    shown, said = _shown(values), ""
    if isinstance(values, str | os.PathLike):
      said = f", such as [{shown}]"
    elif one:
      said = ", not one alone"
    of = "images" if name == "images" else "texts"
    raise UserError(f"{name}={shown}: must be a list of {of}{said}")
  return len(values) if isinstance(values, Sized) else None


def read_image(image: ImageLike) -> bytes | np.ndarray:
  """Returns an image as its file's bytes, or as uint8 [H, W, 3].

  Raises:
    UserError: it is nothing that may be an image.
    OSError: its file cannot be read.
    BadImage: it is a Pillow image whose pixels cannot be read.
  """
  if isinstance(image, str | os.PathLike | io.BufferedIOBase):
    return _read_file(image)
  if isinstance(image, bytes):
    return image
  if isinstance(image, Image.Image):
    try:
      return image_data.from_pillow(image)
    except image_data.BadImage:
      raise
    except ValueError as error:  # It was closed before it was read.
      raise UserError(f"cannot be read ({error})") from error
  if not isinstance(image, np.ndarray):
    raise UserError(f"must be {_IMAGE}")
  good = image.ndim == 3 and image.shape[2] == 3 and image.size
  if not good or image.dtype != np.uint8:
    raise UserError(
      f"an array of dtype {image.dtype} and shape {list(image.shape)}: must be "
      "uint8 [height, width, 3]"
    )
  return image


def _read_file(file: str | os.PathLike[str] | io.BufferedIOBase) -> bytes:
  if isinstance(file, io.BufferedIOBase):
    try:
      return file.read()
    except ValueError as error:  # It is closed, or opened to write.
      raise UserError(f"cannot be read ({error})") from error
  if isinstance(file, str) and file.startswith(("http://", "https://")):
    raise UserError("is an address: download it first")
  with open(file, "rb") as opened:
    return opened.read()


def read_text(text: str) -> str:
  """Returns a text.

  Raises:
    UserError: it is none.
  """
  if not isinstance(text, str):
    raise UserError("must be a string")
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError("is no Unicode text: half of a character") from error
  return text


def read_prompts(prompts: Any) -> list[list[str]]:
  """Returns the texts of each class.

  Raises:
    UserError: they are no lists, or a class has no text.
  """
  check_list(prompts, "prompts")
  found = []
  for number, own in enumerate(prompts):
    check_list(own, f"prompts[{number}]")
    found.append(list(own))
    if not found[-1]:
      raise UserError(f"prompts[{number}]=[]: must have at least one text")
  return found


def checking_prepared(made: Preprocessing) -> Callable[[Any], PreparedImage]:
  """Returns what refuses anything but what `Model.prepare_image` returns."""
  size, length = made.image_size, made.max_patches
  if length is None:
    shapes = {"image": (size, size, 3)}
    said = f"uint8 [{size}, {size}, 3]"
  else:
    width = 3 * (made.patch_size or 0) ** 2
    shapes = {"patches": (length, width), "grid": (2,)}
    said = f"patches, uint8 [{length}, {width}], and their grid"

  def check(image: Any) -> PreparedImage:
    whole = image if isinstance(image, Mapping) else {"image": image}
    good = {name: np.shape(array) for name, array in whole.items()} == shapes
    first = next(iter(whole.values()), None)
    if not good or getattr(first, "dtype", None) != np.uint8:
      raise UserError(f"must be of Model.prepare_image, {said}")
    return image

  return check


def each(
  values: Iterable[Any], name: str, prepare: Callable[[Any], _T]
) -> Iterator[_T]:
  """Yields what `prepare` makes of each value.

  Raises:
    UserError: one of them is no good; it is named by its place.
  """
  for number, value in enumerate(values):
    try:
      made = prepare(value)
    except (UserError, image_data.BadImage, OSError) as error:
      reason = getattr(error, "strerror", None) or error
      shown = _shown(value)
      raise UserError(f"{name}[{number}]={shown}: {reason}") from error
    yield made


def batches(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
  """Yields all values, up to `size` at a time."""
  values = iter(values)
  while batch := list(itertools.islice(values, size)):
    yield batch


def padded(
  rows: Iterable[PreparedImage], size: int
) -> Iterator[tuple[PreparedImage, int]]:
  """Yields (batch of `size` or less, how many count): few shapes to compile."""
  first = True
  for batch in batches(rows, size):
    count = len(batch)
    if not first:  # The last of several takes the others' shape.
      batch += [batch[-1]] * (size - count)
    first = False
    yield stack(batch), count


@contextlib.contextmanager
def showing(
  shown: bool, total: int | None, unit: str
) -> Iterator[Callable[[int], None]]:
  """Yields what is told how many more are done, and shows it if asked to.

  Args:
    shown: False: nobody is told.
    total: how many there are; None: nobody knows.
    unit: of what.
  """
  if not shown:
    yield lambda count: None
    return
  with speaking(), Progress(total, unit) as progress:
    yield progress.add


def check_batch_size(size: Any) -> int:
  """Returns a number of rows.

  Raises:
    UserError: it is none.
  """
  if not isinstance(size, int) or isinstance(size, bool) or size < 1:
    raise UserError(f"batch_size={size!r}: must be a whole number from 1 on")
  return size


def _shown(value: Any) -> str:
  """Returns a value in few words: a path or text as it is, else its kind."""
  if isinstance(value, str | os.PathLike):
    text = repr(os.fspath(value))
  elif value is None or isinstance(value, int | float):
    text = repr(value)
  else:
    return f"<{type(value).__module__}.{type(value).__qualname__}>".replace(
      "<builtins.", "<"
    )
  return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
