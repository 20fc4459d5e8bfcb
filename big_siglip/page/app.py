"""The page's requests and answers; every error is JSON of one line."""

import asyncio
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import ipaddress
import pathlib
from typing import Any
import urllib.parse

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from big_siglip.errors import UserError
from big_siglip.page.gallery import Gallery
from big_siglip.page.limits import Limits
from big_siglip.page.scorer import Busy, File, Scorer
from big_siglip.page.upload import check_text, Uploads

_HEADERS = {
  # Our own three files, and images that the page made or was given.
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
  ),
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
}
_PAGE = {
  "/": ("page.html", "text/html"),
  "/page.css": ("page.css", "text/css"),
  "/page.js": ("page.js", "text/javascript"),
}
_TOP = 24  # Results of a search, unless asked for others.
_NAME = 200  # Characters of an image's name.


def make_app(
  scorer: Scorer,
  name: str,
  gallery: Gallery | None = None,
  limits: Limits | None = None,
  hosts: Set[str] = frozenset({"localhost"}),
) -> ASGIApp:
  """Returns the server's program.

  Args:
    scorer: of the model.
    name: of the model.
    gallery: what can be searched.
    limits: of all requests.
    hosts: names by which it may be called; by an address it always may.
  """
  api = _Api(scorer, name, gallery, limits or Limits())
  app = Starlette(
    routes=[
      *(_file_route(path, *file) for path, file in _PAGE.items()),
      Route("/healthz", api.health),
      Route("/api/classify", api.classify, methods=["POST"]),
      Route("/api/search", api.search),
      Route("/api/images/{number}", api.image),
    ],
    exception_handlers={
      HTTPException: _refuse,
      Busy: lambda _, error: _error(503, str(error)),
      UserError: lambda _, error: _error(400, str(error)),
      # Nobody is there to read it.
      ClientDisconnect: lambda _, error: _error(400, "disconnected"),
      # The trace goes to the server's terminal.
      Exception: lambda _, error: _error(500, "the server failed; see its log"),
    },
  )
  return _Guard(app, hosts)


class _Api:
  """What the page asks for."""

  def __init__(
    self, scorer: Scorer, name: str, gallery: Gallery | None, limits: Limits
  ):
    self._scorer, self._gallery, self._limits = scorer, gallery, limits
    self._name, self._uploads = name, Uploads(limits)
    # Two at a time: an image of many pixels takes much memory.
    self._thumbnails = ThreadPoolExecutor(2, "thumbnails")

  async def health(self, request: Request) -> Response:
    """GET /healthz: that the server answers, and what it offers."""
    found = self._gallery and {
      "kind": self._gallery.kind,
      "count": self._gallery.num_rows,
    }
    return JSONResponse(
      {
        "status": "ok",
        "model": self._name,
        "search": found,
        "sigmoid": self._scorer.has_sigmoid,
        "limits": dataclasses.asdict(self._limits),
      }
    )

  async def classify(self, request: Request) -> Response:
    """POST /api/classify: scores of images for labels."""
    async with self._uploads.read(request) as upload:
      files = [
        File(_printable(image.filename or ""), image.size or 0, image.file)
        for image in upload.images
      ]
      answers = await self._scorer.run(
        self._scorer.classify, files, upload.labels
      )
    if all("error" in answer for answer in answers):
      first = answers[0]
      rest = f" (and {len(answers) - 1} more)" if len(answers) > 1 else ""
      # Images of fewer bytes would have been looked at.
      large = any(file.size > self._limits.image_bytes for file in files)
      message = f"{first['name']}: {first['error']}{rest}"
      return _error(413 if large else 400, message)
    labels = [names[0] for names in upload.labels]
    return JSONResponse({"labels": labels, "images": answers})

  async def search(self, request: Request) -> Response:
    """GET /api/search: what was embedded, nearest to a sentence."""
    if self._gallery is None:
      raise HTTPException(
        404, "there is nothing to search; start with --embeddings=DIR"
      )
    query = request.query_params.get("query", "").strip()
    if not query:
      raise HTTPException(400, "query: type a sentence")
    check_text(query, "query", self._limits)
    top = _read_number(request.query_params.get("top", str(_TOP)))
    if top is None or not 1 <= top <= self._limits.results:
      raise HTTPException(400, f"top: must be 1 to {self._limits.results}")
    results = await self._scorer.run(self._search, query, top)
    return JSONResponse(
      {"query": query, "kind": self._gallery.kind, "results": results}
    )

  async def image(self, request: Request) -> Response:
    """GET /api/images/NUMBER: a small picture of what a search found."""
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

  def _search(self, query: str, top: int) -> list[dict[str, Any]]:
    results = self._gallery.search(self._scorer.embed_query(query), top)
    for row in results:
      row["probability"] = self._scorer.probability(row["score"])
      number = row.pop("number")
      if self._gallery.has_pictures:
        row["image"] = f"api/images/{number}"
    return results


class _Guard:
  """Adds the headers to all answers, and keeps out other sites' names.

  A page of another site can point its own name at this machine and then read
  what is served here (DNS rebinding); the request still says by which name.
  """

  def __init__(self, app: ASGIApp, hosts: Set[str]):
    self._app, self._hosts = app, hosts

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async def send_with_headers(message: Message) -> None:
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message).update(_HEADERS)
      await send(message)

    app = self._app
    if not self._knows(_host(scope)):
      app = _error(400, "this server is not known by that name (Host)")
    await app(scope, receive, send_with_headers)

  def _knows(self, host: str) -> bool:
    if host in self._hosts:
      return True
    try:
      ipaddress.ip_address(host)
    except ValueError:
      return False
    return True


def _host(scope: Scope) -> str:
  try:
    host = Headers(scope=scope).get("host", "")
    return urllib.parse.urlsplit(f"//{host}").hostname or ""
  except ValueError:
    return ""


def _file_route(path: str, name: str, media_type: str) -> Route:
  content = (pathlib.Path(__file__).parent / name).read_bytes()

  async def answer(request: Request) -> Response:
    return Response(content, media_type=media_type)

  return Route(path, answer)


def _refuse(request: Request, error: HTTPException) -> Response:
  return _error(error.status_code, error.detail, error.headers)


def _error(status: int, message: str, headers: Any = None) -> Response:
  return JSONResponse({"error": message}, status, headers)


def _printable(name: str) -> str:
  """Returns a file's name as JSON and a line can hold it."""
  name = name.encode(errors="replace").decode()
  return "".join(c if c.isprintable() else "?" for c in name[:_NAME])


def _read_number(text: str) -> int | None:
  # Nor does `int` take thousands of digits.
  good = text.isascii() and text.isdecimal() and len(text) < 19
  return int(text) if good else None
