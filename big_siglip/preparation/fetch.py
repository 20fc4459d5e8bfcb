"""Fetches images politely, and believes nothing that a server says of them."""

import email.utils
import http.client
import threading
import time
import urllib.parse

import urllib3

from big_siglip.preparation.origins import (
  Limits,
  Origin,
  origin_name,
  parse_robots,
  split_url,
)
from big_siglip.preparation.records import Fault, ImageLimits, take_image

_MOVED = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429)  # As all from 500 on: worth another try.
_ROBOTS_BYTES = 512_000  # RFC 9309, section 2.5: at least 500 KiB are read.
_PIECE = 65_536
_DEAD_SECONDS = 300.0  # Before a server without an answer is asked again.
# What makes a URL of a Location header that holds spaces or Unicode.
_SAFE = "!#$%&'()*+,/:;=?@[]~"


class _Wait(Fault):
  """A server said when to come back."""

  def __init__(self, kind: str, detail: str, seconds: float):
    super().__init__(kind, detail, lasting=False)
    self.seconds = seconds


class Fetcher:
  """Fetches from many servers, each at its own pace; threads may share one."""

  def __init__(self, limits: Limits, of_images: ImageLimits):
    self._limits, self._of_images = limits, of_images
    self._origins: dict[str, Origin] = {}
    self._lock = threading.Lock()

  def fetch(self, url: str) -> bytes:
    """Returns what is kept of an image: see `records.take_image`.

    Raises:
      Fault: "robots"; "http_STATUS"; "timeout", "unreachable", "truncated",
        "protocol" and others of the network; "redirect" (too many, in a
        circle, to no http(s)); "bad_url"; "private_address"; "too_large"; or
        those of `records.take_image`.
    """
    data = self._try(url, self._of_images.max_bytes, obey=True)
    return take_image(data, self._of_images)[0]

  def _try(self, url: str, max_bytes: int, *, obey: bool) -> bytes:
    """Asks again for what may pass."""
    delay = self._limits.backoff
    for attempt in range(self._limits.retries + 1):
      try:
        return self._follow(url, max_bytes, obey)
      except Fault as fault:
        last = attempt == self._limits.retries
        wait = fault.seconds if isinstance(fault, _Wait) else delay
        if fault.lasting or last or wait > self._limits.max_wait:
          raise
      time.sleep(wait)
      delay *= 2
    raise AssertionError("unreachable")

  def _follow(self, url: str, max_bytes: int, obey: bool) -> bytes:
    seen = []
    while True:
      if url in seen:
        raise Fault("redirect", f"in a circle, at {url}")
      seen.append(url)
      if len(seen) > self._limits.max_redirects + 1:
        raise Fault("redirect", f"more than {self._limits.max_redirects}")
      origin = self._origin(url)
      if obey and not self._may_fetch(origin, url):
        raise Fault("robots", f"{origin.name}/robots.txt")
      answer = self._ask(origin, url, max_bytes)
      if isinstance(answer, bytes):
        return answer
      url = _join(url, answer.url)

  def _origin(self, url: str) -> Origin:
    parts = split_url(url)
    with self._lock:
      name = origin_name(parts)
      if name not in self._origins:
        self._origins[name] = Origin(parts, self._limits)
      return self._origins[name]

  def _may_fetch(self, origin: Origin, url: str) -> bool:
    with origin.lock:
      if origin.robots is None:
        if time.monotonic() < origin.dead_until:
          raise Fault("robots_unreachable", origin.name, lasting=False)
        origin.robots = self._read_robots(origin)
    return origin.robots(url)

  def _read_robots(self, origin: Origin):
    """RFC 9309, section 2.3.1: none means all; unreachable means nothing."""
    try:
      text = self._try(f"{origin.name}/robots.txt", _ROBOTS_BYTES, obey=False)
    except Fault as fault:
      status = fault.kind.removeprefix("http_")
      if status.startswith("4") and status != "429":
        return lambda url: True
      if fault.kind == "private_address":
        raise
      detail = f"{fault.kind} at {origin.name}/robots.txt"
      origin.dead_until = time.monotonic() + _DEAD_SECONDS
      raise Fault("robots_unreachable", detail, lasting=False) from fault
    text = text.decode("utf-8-sig", "replace")  # Some start with a mark.
    return parse_robots(text, self._limits, origin)

  def _ask(self, origin: Origin, url: str, max_bytes: int):
    """Returns the bytes of one answer, or a `_Moved`."""
    deadline = time.monotonic() + self._limits.max_seconds
    pool = origin.pool()
    origin.wait()
    parts = split_url(url)
    target = urllib.parse.quote(parts.path or "/", _SAFE)
    if parts.query:
      target += "?" + urllib.parse.quote(parts.query, _SAFE)
    try:
      response = pool.urlopen(
        "GET",
        target,
        headers={
          "Host": parts.netloc,
          "User-Agent": self._limits.user_agent,
          "Accept": "image/*,*/*;q=0.1",
          "Accept-Encoding": "identity",
        },
        timeout=self._limits.timeout,
        retries=False,
        redirect=False,
        preload_content=False,
        decode_content=False,
      )
    except urllib3.exceptions.HTTPError as error:
      origin.forget_address()
      raise _network_fault(error) from error
    whole = False
    try:
      answer = self._judge(origin, response, max_bytes, deadline)
      whole = isinstance(answer, bytes)
      return answer
    except (urllib3.exceptions.HTTPError, OSError) as error:
      raise _network_fault(error) from error
    finally:
      if not whole:  # The rest of it would be read as the next answer.
        response.close()
      response.release_conn()

  def _judge(self, origin: Origin, response, max_bytes: int, deadline: float):
    status = response.status
    if status in _MOVED and response.headers.get("Location"):
      return _Moved(response.headers["Location"])
    if status in _PASSING or status >= 500:
      raise self._come_back(origin, response)
    if status != 200:
      raise Fault(f"http_{status}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":  # A bomb may hide in it.
      raise Fault("encoding", f"{encoding} was not asked for")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and float(length) > max_bytes:  # int: 4,300 digits.
      raise Fault("too_large", f"{length[:20]} bytes")
    return self._read_body(response, max_bytes, deadline)

  def _come_back(self, origin: Origin, response) -> Fault:
    kind, after = f"http_{response.status}", response.headers.get("Retry-After")
    if after is None:
      return Fault(kind, lasting=False)
    seconds = _seconds(after)
    if seconds <= self._limits.max_wait:
      origin.pause(seconds)
    return _Wait(kind, f"Retry-After: {after}", seconds)

  def _read_body(self, response, max_bytes: int, deadline: float) -> bytes:
    pieces, size = [], 0
    # Not stream(), which waits for a whole piece however slowly it drips.
    while piece := response.read1(_PIECE):
      pieces.append(piece)
      size += len(piece)
      if size > max_bytes:
        raise Fault("too_large", f"more than {max_bytes} bytes")
      if time.monotonic() > deadline:
        seconds = self._limits.max_seconds
        raise Fault("timeout", f"not whole after {seconds:g} s", lasting=False)
    return b"".join(pieces)


class _Moved:
  """Where an answer sends one."""

  def __init__(self, url: str):
    self.url = url


def _join(url: str, location: str) -> str:
  """Returns where a Location leads, which need not be whole or even ASCII."""
  # A server's UTF-8 stands here as http.client reads all headers: as Latin-1.
  location = urllib.parse.quote(location.encode("latin-1", "replace"), _SAFE)
  try:
    joined = urllib.parse.urljoin(url, location)
    allowed = urllib.parse.urlsplit(joined).scheme in ("http", "https")
  except ValueError:
    joined, allowed = location, False
  if not allowed:
    raise Fault("redirect", f"to {joined[:200]}")
  return joined


def _seconds(retry_after: str) -> float:
  """Reads a Retry-After, which is a number or a date (RFC 9110, 10.2.3)."""
  if retry_after.strip().isdecimal():
    return float(retry_after)
  try:
    when = email.utils.parsedate_to_datetime(retry_after)
    return max(0.0, when.timestamp() - time.time())
  except (ValueError, OverflowError):  # Of a year that no calendar has.
    return 0.0


def _network_fault(error: Exception) -> Fault:
  kinds = (
    (urllib3.exceptions.TimeoutError, "timeout"),
    (urllib3.exceptions.SSLError, "tls"),
    (urllib3.exceptions.NewConnectionError, "unreachable"),
    (http.client.IncompleteRead, "truncated"),  # urllib3's is one, too.
    (urllib3.exceptions.LocationValueError, "bad_url"),
  )
  cause = error.args[1] if len(error.args) > 1 else None
  for exception, kind in kinds:
    if isinstance(error, exception) or isinstance(cause, exception):
      lasting = kind in ("tls", "bad_url")
      return Fault(kind, str(error)[:200], lasting)
  return Fault("protocol", f"{type(error).__name__}: {error}"[:200], False)
