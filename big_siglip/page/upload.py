"""Reads a form of images and texts, and refuses what is too much."""

from collections.abc import AsyncIterator, Sequence
import contextlib
import re
from typing import NamedTuple

import anyio
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from big_siglip.data import class_files
from big_siglip.data.class_names import ClassNames, distinct
from big_siglip.errors import UserError
from big_siglip.page.limits import Limits

_DRAIN_SECONDS = 10.0
_TOO_LARGE = "Body exceeded"
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class Upload(NamedTuple):
  """What a form holds.

  Attributes:
    images: files of the field "images" that were chosen.
    fields: the texts of all others, by their names.
  """

  images: list[UploadFile]
  fields: dict[str, list[str]]

  def last(self, name: str) -> str:
    """Returns the last text of a field, "" if there is none."""
    return self.fields.get(name, [""])[-1].strip()


class Uploads:
  """Reads forms, a few at a time: what arrives slowly lies on the disk."""

  def __init__(self, limits: Limits):
    """Nothing is under way yet."""
    self._limits, self._under_way = limits, 0

  @contextlib.asynccontextmanager
  async def read(
    self, request: Request, texts: str, others: int = 0
  ) -> AsyncIterator[Upload]:
    """Yields what a form holds; the images are open within.

    Args:
      request: with a form as its body.
      texts: the field of which there may be many.
      others: how many fields there may be besides.

    Raises:
      HTTPException: it is no such form, or holds too much, or takes too long,
        or too many others are under way.
    """
    self._under_way += 1
    try:
      form = await self._read_form(request, texts, others)
      try:
        yield _split(form)
      finally:
        await form.close()
    finally:
      self._under_way -= 1

  async def _read_form(
    self, request: Request, texts: str, others: int
  ) -> FormData:
    limits = self._limits
    body = _Body(request.receive, limits.upload_bytes)
    try:
      if self._under_way > limits.uploads:
        raise HTTPException(503, "too many uploads; try again in a moment")
      _check_header(request, limits)
      with anyio.fail_after(limits.upload_seconds):
        return await Request(request.scope, body).form(
          max_files=limits.images,
          max_fields=limits.labels + others,
          # All labels as one field, four bytes a character.
          max_part_size=limits.labels * (4 * limits.label_length + 2),
        )
    except TimeoutError as error:
      raise HTTPException(
        408, f"the upload took more than {limits.upload_seconds:g} seconds"
      ) from error
    except HTTPException as error:
      await body.drain()
      raise _in_our_words(error, texts, limits) from error


def read_labels(
  texts: Sequence[str], limits: Limits
) -> tuple[tuple[str, ...], ...]:
  """Returns the names of each label of some texts, which `class_files` reads.

  Raises:
    HTTPException: there are none, or too many, or one is too long or stands
      there twice, or a text begins as JSON and is none.
  """
  texts = [re.sub(r"\r\n?", "\n", text) for text in texts if text.strip()]
  try:
    parsed = [class_files.parse(text, "labels") for text in texts]
    classes = ClassNames(tuple(own for part in parsed for own in part.names))
    labels, _ = distinct(parsed[0] if len(parsed) == 1 else classes, "labels")
  except UserError as error:
    raise HTTPException(400, str(error)) from error
  if not labels:
    raise HTTPException(400, "labels: give at least one")
  count = sum(map(len, labels))
  if count > limits.labels:
    raise HTTPException(
      413, f"labels: {count:,} are too many; at most {limits.labels:,}"
    )
  for name in (name for own in labels for name in own):
    check_text(name, f"label {name[:40]!r}", limits)
  return labels


def check_text(text: str, name: str, limits: Limits) -> None:
  """Refuses a text that is too long, or none.

  Raises:
    HTTPException: says so of `name`.
  """
  if len(text) > limits.label_length:
    raise HTTPException(
      400, f"{name}: longer than {limits.label_length} characters"
    )
  try:
    text.encode()
  except UnicodeEncodeError as error:  # Half of a character.
    raise HTTPException(400, f"{name}: is no Unicode text") from error


def _check_header(request: Request, limits: Limits) -> None:
  kind = request.headers.get("content-type", "")
  if not kind.lower().startswith(_FORMS):
    raise HTTPException(
      400, f"must be a {_FORMS[0]} form (or {_FORMS[1]}), not {kind[:80]!r}"
    )
  length = request.headers.get("content-length", "")
  if length.isdecimal() and int(length) > limits.upload_bytes:
    raise _too_large(limits)


def _split(form: FormData) -> Upload:
  images, fields = [], {}
  for name, value in form.multi_items():
    if name != "images":
      if isinstance(value, UploadFile):
        raise HTTPException(400, f"{name}: must be text, not files")
      fields.setdefault(name, []).append(value)
    elif isinstance(value, str):
      raise HTTPException(400, "images: must be files, not text")
    # A form without a choice sends one file of no name and no bytes.
    elif value.filename or value.size:
      images.append(value)
  return Upload(images, fields)


def _too_large(limits: Limits) -> HTTPException:
  megabytes = limits.upload_bytes // 2**20
  return HTTPException(413, f"the upload is larger than {megabytes} MB")


def _in_our_words(
  error: HTTPException, texts: str, limits: Limits
) -> HTTPException:
  """Says in the form's terms what the parser says in its own."""
  if error.detail.startswith("Too many files"):
    return HTTPException(413, f"images: at most {limits.images} at once")
  if error.detail.startswith(("Too many fields", "Part exceeded")):
    return HTTPException(
      413,
      f"{texts}: at most {limits.labels:,} of {limits.label_length} characters",
    )
  if error.detail.startswith(_TOO_LARGE):
    return _too_large(limits)
  return error


class _Body:
  """A request's body, counted; can be read on without keeping it."""

  def __init__(self, receive: Receive, limit: int):
    self._receive, self._limit = receive, limit
    self._count, self._ended = 0, False

  async def __call__(self) -> Message:
    message = await self._next()
    if self._count > self._limit:
      raise HTTPException(413, _TOO_LARGE)
    return message

  async def drain(self) -> None:
    """Reads on for a while: many clients see no answer while they send."""
    with anyio.move_on_after(_DRAIN_SECONDS):
      while not self._ended and self._count < 4 * self._limit:
        await self._next()

  async def _next(self) -> Message:
    message = await self._receive()
    self._count += len(message.get("body", b""))
    self._ended = not message.get("more_body", False)
    return message
