"""What the page asks for, and what it is answered."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from big_siglip.page import maps
from big_siglip.page.gallery import Gallery
from big_siglip.page.limits import Limits
from big_siglip.page.scorer import File, Scorer
from big_siglip.page.searching import Asked, search
from big_siglip.page.upload import check_text, read_labels, Upload, Uploads
from big_siglip.trained.classifier import Head

_TOP = 24  # Results of a search, unless asked for others.
_NAME = 200  # Characters of an image's name.
_FORMATS = ("list", "base64")
_COMBINE = ("each", "mean")


class Answers:
  """Answers requests of one model."""

  def __init__(
    self,
    scorer: Scorer,
    name: str,
    gallery: Gallery | None,
    limits: Limits,
    heads: Mapping[str, Head],
  ):
    """See `app.make_app`."""
    self._heads = heads
    self._scorer, self._gallery, self._limits = scorer, gallery, limits
    self._name, self._uploads = name, Uploads(limits)
    # Two at a time: an image of many pixels takes much memory.
    self._thumbnails = ThreadPoolExecutor(2, "thumbnails")

  async def health(self, request: Request) -> Response:
    """GET /healthz: that the server answers, what it offers, what it is at."""
    gallery = self._gallery
    found = gallery and {
      "kind": gallery.kind,
      "count": gallery.num_rows,
      "index": gallery.index,
      "columns": gallery.columns,
    }
    classifiers = {
      name: {
        "labels": list(head.labels),
        "images": head.description.images,
        "measured": dict(head.description.measured),
      }
      for name, head in self._heads.items()
    }
    return JSONResponse(
      {
        "status": "ok",
        "model": self._name,
        "search": found,
        "classifiers": classifiers,
        "sigmoid": self._scorer.has_sigmoid,
        "maps": maps.offered(self._scorer.model),
        "calibration": self._scorer.calibration,
        "limits": dataclasses.asdict(self._limits),
        **self._scorer.state,
      }
    )

  async def classify(self, request: Request) -> Response:
    """POST /api/classify: scores of images for labels."""
    async with self._uploads.read(request, "labels", 1) as upload:
      if not upload.images:
        raise HTTPException(400, "images: choose at least one")
      files, name = _files(upload.images), upload.last("classifier")
      if name:
        head = self._head(name)
        names = head.labels
        job = self._scorer.run(self._scorer.classify_by, files, head)
      else:
        labels = read_labels(upload.fields.get("labels", ()), self._limits)
        names = [own[0] for own in labels]
        job = self._scorer.run(self._scorer.classify, files, labels)
      answers = await job
    if refused := self._refuse_all(files, answers):
      return refused
    return JSONResponse({"labels": list(names), "images": answers})

  async def maps(self, request: Request) -> Response:
    """POST /api/maps: where in one image each label fires."""
    most = self._limits.maps
    async with self._uploads.read(request, "labels", most) as upload:
      if len(upload.images) != 1:
        raise HTTPException(400, f"images: {len(upload.images)}; must be one")
      labels = read_labels(upload.fields.get("labels", ()), self._limits)
      names = [own[0] for own in labels]
      asked = upload.fields.get("of", names)
      for name in asked:
        if name not in names:
          raise HTTPException(400, f"of={name[:40]!r}: is none of the labels")
      if len(asked) > most:
        raise HTTPException(413, f"of: {len(asked)} maps; at most {most}")
      which, files = list(map(names.index, asked)), _files(upload.images)
      answer = await self._scorer.run(
        maps.draw, self._scorer, files[0], labels, which
      )
    return self._refuse_all(files, [answer]) or JSONResponse(answer)

  def _head(self, name: str) -> Head:
    if name not in self._heads:
      there = ", ".join(map(repr, self._heads)) or "none"
      raise HTTPException(
        400, f"classifier={name[:40]!r}: there is no such one, but {there}"
      )
    return self._heads[name]

  async def embed(self, request: Request) -> Response:
    """POST /api/embed: unit vectors of images and texts."""
    async with self._uploads.read(request, "texts", 1) as upload:
      texts = upload.fields.get("texts", [])
      if not upload.images and not texts:
        raise HTTPException(400, "texts, images: give at least one")
      form = upload.last("format") or "list"
      if form not in _FORMATS:
        allowed = " or ".join(_FORMATS)
        raise HTTPException(400, f"format={form[:40]!r}: must be {allowed}")
      if len(texts) > self._limits.labels:
        most = f"{self._limits.labels:,}"
        raise HTTPException(413, f"texts: {len(texts):,}; at most {most}")
      for number, text in enumerate(texts):
        check_text(text, f"texts[{number}]", self._limits)
      files = _files(upload.images)
      answers, rows = await self._scorer.run(self._scorer.embed, files, texts)
    refused = self._refuse_all(files, answers)
    if refused and not texts:
      return refused
    for answer in answers:
      if "embedding" in answer:
        answer["embedding"] = _vector(answer["embedding"], form)
    return JSONResponse(
      {
        "texts": [_vector(row, form) for row in rows],
        "images": answers,
        "logit_scale": self._scorer.logit_scale,
        "logit_bias": self._scorer.logit_bias,
      }
    )

  async def search(self, request: Request) -> Response:
    """GET or POST /api/search: what was embedded, nearest to a query."""
    if self._gallery is None:
      raise HTTPException(
        404, "there is nothing to search; start with --embeddings=DIR"
      )
    if request.method == "GET":
      given = request.query_params
      fields = {name: given.getlist(name) for name in given}
      return await self._search(Upload([], fields))
    async with self._uploads.read(request, "query", 3) as upload:
      return await self._search(upload)

  async def _search(self, upload: Upload) -> Response:
    lines, likes = self._read_queries(upload)
    top = _read_number(upload.last("top") or str(_TOP))
    if top is None or not 1 <= top <= self._limits.results:
      raise HTTPException(400, f"top: must be 1 to {self._limits.results}")
    where, combine = upload.last("where"), upload.last("combine") or "each"
    check_text(where, "where", self._limits)
    if combine not in _COMBINE:
      allowed = " or ".join(_COMBINE)
      raise HTTPException(400, f"combine={combine[:40]!r}: must be {allowed}")
    asked = Asked(_files(upload.images), lines, likes, combine == "mean")
    queries = await self._scorer.run(
      search, self._scorer, self._gallery, asked, top, where or None
    )
    return JSONResponse({"kind": self._gallery.kind, "queries": queries})

  def _read_queries(self, upload: Upload) -> tuple[list[str], list[int]]:
    """Returns the lines that are asked for, and the ids of results."""
    texts = (text.splitlines() for text in upload.fields.get("query", ()))
    lines = [line.strip() for own in texts for line in own if line.strip()]
    likes = [_read_number(text) for text in upload.fields.get("like", ())]
    count = len(lines) + len(likes) + len(upload.images)
    if not count:
      raise HTTPException(400, "query: type a sentence, or give an image")
    if count > self._limits.queries:
      most = self._limits.queries
      raise HTTPException(
        400, f"query: {count} lines and images; at most {most}"
      )
    for line in lines:
      check_text(line, "query", self._limits)
    numbers = [number for number in likes if number is not None]
    if len(numbers) < len(likes):
      raise HTTPException(400, "like: must be the id of a result")
    return lines, numbers

  async def image(self, request: Request) -> Response:
    """GET /api/images/ID: a small picture of what a search found."""
    number = _read_number(request.path_params["number"])
    picture = None
    if self._gallery is not None and number is not None:
      loop = asyncio.get_running_loop()
      picture = await loop.run_in_executor(
        self._thumbnails, self._gallery.thumbnail, number
      )
    if picture is None:
      raise HTTPException(404, "no such image")
    return Response(picture, media_type="image/jpeg")

  def _refuse_all(
    self, files: Sequence[File], answers: Sequence[dict[str, Any]]
  ) -> Response | None:
    """Returns an error if none of the images can be read."""
    if not answers or not all("error" in answer for answer in answers):
      return None
    first = answers[0]
    rest = f" (and {len(answers) - 1} more)" if len(answers) > 1 else ""
    # Images of fewer bytes would have been looked at.
    large = any(file.size > self._limits.image_bytes for file in files)
    message = f"{first['name']}: {first['error']}{rest}"
    return error(413 if large else 400, message)


def error(status: int, message: str, headers: Any = None) -> Response:
  """Returns an answer that says what is wrong in one line."""
  return JSONResponse({"error": message}, status, headers)


def _files(images: Sequence[UploadFile]) -> list[File]:
  return [
    File(_printable(image.filename or ""), image.size or 0, image.file)
    for image in images
  ]


def _vector(row: np.ndarray, form: str) -> list[float | None] | str:
  """Returns numbers, or their float32 in the lowest byte's order as base64."""
  if form == "base64":
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
  return [value if np.isfinite(value) else None for value in row.tolist()]


def _printable(name: str) -> str:
  """Returns a file's name as JSON and a line can hold it."""
  name = name.encode(errors="replace").decode()
  return "".join(c if c.isprintable() else "?" for c in name[:_NAME])


def _read_number(text: str) -> int | None:
  # Nor does `int` take thousands of digits.
  good = text.isascii() and text.isdecimal() and len(text) < 19
  return int(text) if good else None
