"""The page's requests and answers; every error is JSON of one line."""

from collections.abc import Mapping, Set
import ipaddress
import pathlib
import urllib.parse

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from big_siglip.errors import UserError
from big_siglip.page.answers import Answers, error
from big_siglip.page.gallery import Gallery
from big_siglip.page.limits import Limits
from big_siglip.page.scorer import Busy, Scorer
from big_siglip.trained.classifier import Head

_HEADERS = {
  # Our own files, and images that the page made or was given.
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
  "/common.js": ("common.js", "text/javascript"),
  "/images.js": ("images.js", "text/javascript"),
  "/labels.js": ("labels.js", "text/javascript"),
  "/maps.js": ("maps.js", "text/javascript"),
  "/search.js": ("search.js", "text/javascript"),
  "/api": ("api.html", "text/html"),
  "/schema.json": ("schema.json", "application/schema+json"),
}


def make_app(
  scorer: Scorer,
  name: str,
  gallery: Gallery | None = None,
  limits: Limits | None = None,
  hosts: Set[str] = frozenset({"localhost"}),
  prefix: str = "",
  heads: Mapping[str, Head] | None = None,
) -> ASGIApp:
  """Returns the server's program.

  Args:
    scorer: of the model.
    name: of the model.
    gallery: what can be searched.
    limits: of all requests.
    hosts: names by which it may be called; by an address it always may.
    prefix: of paths, "/siglip", where a proxy leaves it on; "" for none.
    heads: classifiers of the model, by their names.
  """
  api = Answers(scorer, name, gallery, limits or Limits(), heads or {})
  app = Starlette(
    routes=[
      *(_file_route(path, *file) for path, file in _PAGE.items()),
      Route("/healthz", api.health),
      Route("/api/classify", api.classify, methods=["POST"]),
      Route("/api/maps", api.maps, methods=["POST"]),
      Route("/api/embed", api.embed, methods=["POST"]),
      Route("/api/search", api.search, methods=["GET", "POST"]),
      Route("/api/images/{number}", api.image),
    ],
    exception_handlers={
      HTTPException: _refuse,
      Busy: lambda _, busy: error(503, str(busy)),
      UserError: lambda _, wrong: error(400, str(wrong)),
      # Nobody is there to read it.
      ClientDisconnect: lambda _, gone: error(400, "disconnected"),
      # The trace goes to the server's terminal.
      Exception: lambda _, fault: error(500, "the server failed; see its log"),
    },
  )
  return _Guard(app, hosts, prefix)


class _Guard:
  """Adds the headers to all answers, and keeps out other sites' names.

  A page of another site can point its own name at this machine and then read
  what is served here (DNS rebinding); the request still says by which name.
  """

  def __init__(self, app: ASGIApp, hosts: Set[str], prefix: str):
    self._app, self._hosts, self._prefix = app, hosts, prefix

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async def send_with_headers(message: Message) -> None:
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message).update(_HEADERS)
      await send(message)

    app = self._app
    if not self._knows(_host(scope)):
      app = error(400, "this server is not known by that name (Host)")
    elif self._prefix and scope["type"] == "http":
      scope, app = self._below_prefix(scope)
    await app(scope, receive, send_with_headers)

  def _below_prefix(self, scope: Scope) -> tuple[Scope, ASGIApp]:
    """Returns what is asked of whom without the prefix, if there is one.

    Paths of the page are relative, so that its own address must end with a
    slash, wherever it is.
    """
    path = scope["path"]
    if path == self._prefix:
      # From "x/siglip" this leads to "x/siglip/", whatever a proxy cut off.
      name = self._prefix.rpartition("/")[2]
      return scope, Response(status_code=307, headers={"Location": f"{name}/"})
    if not path.startswith(f"{self._prefix}/"):
      return scope, self._app
    path = path.removeprefix(self._prefix)
    return {**scope, "path": path, "raw_path": path.encode()}, self._app

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


def _refuse(request: Request, refusal: HTTPException) -> Response:
  return error(refusal.status_code, refusal.detail, refusal.headers)
