"""Serves a page for a trained model: images against labels, and search.

big-siglip serve --checkpoint=models/b16
big-siglip serve --checkpoint=models/b16 --embeddings=vectors --port=8080
big-siglip serve --checkpoint=models/b16 --classifier=birds

Needs pip install 'big_siglip[serve]'. Only this machine can open the page,
unless --host says otherwise; it asks for no password. See docs/page.md.
"""

import ipaddress
import os
import pathlib
import signal
import socket
import sys
import warnings

from absl import flags, logging

from big_siglip import extras, progress
from big_siglip.commands import sight
from big_siglip.errors import exit_on_error, UserError

flags.adopt_module_key_flags(sight)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's or model's folder, or published weights."
)
_EMBEDDINGS = flags.DEFINE_string(
  "embeddings", None, "A folder of big-siglip embed to search."
)
_HOST = flags.DEFINE_string(
  "host", "127.0.0.1", "The address to listen at; 0.0.0.0: all of them."
)
_PORT = flags.DEFINE_integer("port", 8000, "The port; 0: any that is free.")
_NAMES = flags.DEFINE_list(
  "names", [], "More names by which browsers may call this machine."
)
_INDEX = flags.DEFINE_string(
  "index", "exact", "How to search --embeddings; see big-siglip search."
)
_CLASSIFIER = flags.DEFINE_multi_string(
  "classifier", [], "A folder of big-siglip probe to offer; several."
)
_DATABASE = flags.DEFINE_string(
  "database",
  "",
  "Of --index=milvus: http://HOST:19530; $MILVUS_TOKEN opens it.",
)
_COLLECTION = flags.DEFINE_string(
  "collection", "", "Its name in the database; the folder's unless given."
)
_PREFIX = flags.DEFINE_string(
  "prefix", "", "What a proxy leaves before each path, such as /siglip."
)
_GRACE = 5  # Seconds for requests that are under way at the end.


def main(argv: list[str]) -> None:
  """Serves until Ctrl-C or SIGTERM."""
  logging.set_verbosity(logging.ERROR)
  # Of images that strangers send; what matters of it stands in the answers.
  warnings.filterwarnings("ignore", module="PIL")
  # Also while the model loads.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit(0))
  with exit_on_error():
    if not _CHECKPOINT.value:
      raise UserError("--checkpoint=MODEL must be given")
    if argv[1:]:
      raise UserError(f"{argv[1]!r}: belongs to no flag")
    _check_prefix(_PREFIX.value)
    listener = listen(_HOST.value, _PORT.value)  # Before what takes minutes.
    server, warm_up = _make_server()
  _announce(listener)
  warm_up()  # The page can be opened meanwhile, and says what it waits for.
  # uvicorn hears the signals, ends what it does, and raises them again.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
  server.run(sockets=[listener])
  # A batch may take the device a while yet, and nobody waits for it.
  sys.stdout.flush()
  os._exit(0)


def listen(host: str, port: int) -> socket.socket:
  """Returns a socket that listens.

  Raises:
    UserError: the port is in use, or may not be used, or there is no such
      address here.
  """
  if not 0 <= port < 2**16:
    raise UserError(f"--port={port}: must be 0 to 65535")
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except (OSError, UnicodeError) as error:
    reason = str(getattr(error, "strerror", None) or error)
    reason = reason.partition(" (while")[0]  # What follows says the same.
    raise UserError(f"--host={host} --port={port}: {reason}") from error


def _announce(listener: socket.socket) -> None:
  """Prints the page's address, and warns of one that others can reach."""
  address = ipaddress.ip_address(listener.getsockname()[0])
  host = _HOST.value
  if address.is_unspecified:  # Of every network: no place to go to.
    host = socket.gethostname()
  if not address.is_loopback:
    print(
      f"warning: --host={_HOST.value}: whoever reaches this machine can use "
      "the page and see what is searched; it asks for no password",
      file=sys.stderr,
    )
  host = f"[{host}]" if ":" in host else host
  port = listener.getsockname()[1]
  print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)


def _check_prefix(prefix: str) -> None:
  good = prefix.startswith("/") and not prefix.endswith("/")
  if prefix and not good:
    raise UserError(
      f"--prefix={prefix}: must begin with a slash and not end with one"
    )


def _check_folders():
  """Returns {name: folder} of classifiers, before the model is read.

  Raises:
    UserError: a folder holds none, or no embeddings; two have one name.
  """
  from big_siglip import embeddings
  from big_siglip.trained import classifier

  if _EMBEDDINGS.value:
    embeddings.Reader(pathlib.Path(_EMBEDDINGS.value).expanduser())
  folders = {}
  for folder in _CLASSIFIER.value:
    name = pathlib.Path(folder).expanduser().resolve().name
    if name in folders:
      raise UserError(f"--classifier={folder}: there is one called {name!r}")
    classifier.read(folder)
    folders[name] = folder
  return folders


def _make_server():
  """Returns uvicorn's server of the model's page, and what starts to compile.

  Raises:
    UserError: a library is missing, or the model or the folder is none.
  """
  with progress.loading():
    with extras.needed_by("big-siglip serve"):
      import python_multipart  # noqa: F401
      import uvicorn

      from big_siglip.page.app import make_app
    from big_siglip import platforms
    from big_siglip.embeddings import index
    from big_siglip.page.gallery import Gallery
    from big_siglip.page.limits import Limits
    from big_siglip.page.scorer import Scorer

    choice = index.Choice(_INDEX.value, _DATABASE.value, _COLLECTION.value)
    choice.check()
    classifiers = _check_folders()
    platforms.prepare()
  model = sight.load(_CHECKPOINT.value)
  for kind in ("images", "texts"):  # Before the page opens.
    model.embedder(kind)
  limits, gallery = Limits(), None
  if _EMBEDDINGS.value:
    folder = pathlib.Path(_EMBEDDINGS.value).expanduser()
    gallery = Gallery(folder, model, _CHECKPOINT.value, limits, choice)
  names = {"localhost", socket.gethostname(), _HOST.value, *_NAMES.value}
  hosts = {name.lower() for name in names}
  name = _CHECKPOINT.value.rstrip("/").rsplit("/", 1)[-1]
  scorer = Scorer(model, limits)
  heads = {
    name: model.classifier(one).head for name, one in classifiers.items()
  }
  page = make_app(scorer, name, gallery, limits, hosts, _PREFIX.value, heads)
  config = uvicorn.Config(
    page,
    loop="asyncio",
    http="h11",
    ws="none",
    lifespan="off",
    log_level="warning",
    server_header=False,
    proxy_headers=False,
    timeout_graceful_shutdown=_GRACE,
  )
  return uvicorn.Server(config), lambda: scorer.start(scorer.warm_up)
