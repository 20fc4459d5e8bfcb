"""A web server on this machine that serves images, and misbehaves."""

import collections
import contextlib
import gzip
import http.server
import io
import struct
import threading
import time
import zlib

import numpy as np
from PIL import Image

ROBOTS = "User-agent: *\nDisallow: /secret/\n"


def picture(number, format="JPEG", size=(40, 30)):
  """Returns an encoded image that its number determines."""
  rng = np.random.default_rng(number)
  pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, format)
  return data.getvalue()


def bomb(width=50_000, height=50_000):
  """Returns a PNG of a few bytes that says it has billions of pixels."""

  def chunk(kind, data):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum

  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(bytes(1000)))
    + chunk(b"IEND", b"")
  )


class _Handler(http.server.BaseHTTPRequestHandler):
  """The first part of a path says how; a number at its end, which image."""

  protocol_version = "HTTP/1.1"

  def do_GET(self):
    server = self.server
    with server.lock:
      server.requests[self.path] += 1
      server.times[self.path].append(time.monotonic())
      server.agents.add(self.headers["User-Agent"])
      first = server.requests[self.path] == 1
    kind = self.path.strip("/").split("/")[0].split(".")[0]
    if server.delay:
      time.sleep(server.delay)
    with contextlib.suppress(OSError):  # The client need not wait for the end.
      getattr(self, f"_{kind}", self._gone)(first)

  def _image(self):
    digits = "".join(c for c in self.path.split("/")[-1] if c.isdigit())
    return picture(int(digits or 0))

  def _send(self, status=200, body=b"", **headers):
    self.send_response(status)
    headers.setdefault("Content_Length", str(len(body)))
    headers.setdefault("Content_Type", "image/jpeg")
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    self.wfile.write(body)

  def _robots(self, first):
    status, text = self.server.robots
    self._send(status, text.encode(), Content_Type="text/plain")

  def _good(self, first):
    self._send(body=self._image())

  def _secret(self, first):
    self._send(body=self._image())

  def _gone(self, first):
    self._send(404, b"no such thing")

  def _once500(self, first):
    self._send(500, b"oh") if first else self._good(first)

  def _always500(self, first):
    self._send(500, b"oh")

  def _busy(self, first):
    self._send(503, Retry_After="1") if first else self._good(first)

  def _tomorrow(self, first):
    self._send(429, Retry_After="86400")

  def _stall(self, first):
    self.send_response(200)
    self.send_header("Content-Length", "1000")
    self.end_headers()
    self.wfile.write(b"\xff\xd8")
    self.server.closing.wait(30)

  def _drip(self, first):
    self.send_response(200)
    self.send_header("Content-Length", "100000")
    self.end_headers()
    while not self.server.closing.wait(0.05):
      self.wfile.write(b"x")

  def _drip_head(self, first):
    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    while not self.server.closing.wait(0.05):
      self.wfile.write(b"x")

  def _moved(self, first):
    self._send(301, Location="/good/77")

  def _inutf8(self, first):
    # Asked for as %C3%BC, whose one digit says which image.
    self._send(301, Location="/good/\u00fc".encode().decode("latin-1"))

  def _circle(self, first):
    other = "b" if self.path.endswith("a") else "a"
    self._send(302, Location=f"/circle/{other}")

  def _far(self, first):
    number = int(self.path.rsplit("/", 1)[1])
    self._send(302, Location=f"/far/{number + 1}")

  def _tofile(self, first):
    self._send(302, Location="file:///etc/passwd")

  def _tometadata(self, first):
    self._send(302, Location="http://169.254.169.254/latest/meta-data")

  def _tosecret(self, first):
    self._send(302, Location="/secret/1")

  def _wrongtype(self, first):
    self._send(body=self._image(), Content_Type="text/html")

  def _html(self, first):
    self._send(body=b"<!DOCTYPE html><p>Not here.")

  def _cut(self, first):
    self._send(body=self._image()[:100], Content_Length="5000")
    self.close_connection = True

  def _half(self, first):
    self._send(body=self._image()[:-400])

  def _huge(self, first):
    self._send(Content_Length=str(10**12))
    self.close_connection = True

  def _digits(self, first):
    self._send(Content_Length="9" * 5_000)
    self.close_connection = True

  def _someday(self, first):
    when = "Mon, 01 Jan 99999999999 00:00:00 GMT"
    self._send(503, Retry_After=when) if first else self._good(first)

  def _endless(self, first):
    self.send_response(200)
    self.send_header("Transfer-Encoding", "chunked")
    self.end_headers()
    while not self.server.closing.is_set():
      self.wfile.write(b"10000\r\n" + bytes(65_536) + b"\r\n")

  def _bomb(self, first):
    self._send(body=bomb())

  def _packed(self, first):
    self._send(body=gzip.compress(self._image()), Content_Encoding="gzip")

  def _hangup(self, first):
    self.close_connection = True

  def log_message(self, *args):
    pass


class ImageServer(http.server.ThreadingHTTPServer):
  """Counts requests by path in `requests`, and keeps their times."""

  daemon_threads = True

  def __init__(self, robots=(200, ROBOTS), delay=0.0):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.robots, self.delay = robots, delay
    self.requests = collections.Counter()
    self.times = collections.defaultdict(list)
    self.agents = set()
    self.lock, self.closing = threading.Lock(), threading.Event()

  def url(self, path):
    return f"http://127.0.0.1:{self.server_port}/{path}"


@contextlib.contextmanager
def serve(**options):
  """Runs a server in a thread."""
  with ImageServer(**options) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
      yield server
    finally:
      server.closing.set()
      server.shutdown()
      thread.join()
