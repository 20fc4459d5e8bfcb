"""One web server: its address, its pace and its robots.txt."""

from collections.abc import Callable
import dataclasses
import ipaddress
import math
import socket
import threading
import time
import urllib.parse

import protego
import urllib3

from big_siglip.errors import UserError
from big_siglip.preparation.connections import HTTPPool, HTTPSPool
from big_siglip.preparation.records import Fault

_PORTS = {"http": 80, "https": 443}


@dataclasses.dataclass(frozen=True)
class Limits:
  """How images are asked for, and what is refused.

  Attributes:
    user_agent: names the program and says whom to write to; the part before
      the first "/" is what robots.txt calls it.
    requests_per_second: to one server, all connections together.
    connections: to one server at a time.
    retries: after the first try, of what may pass.
    backoff: seconds before the first retry; doubled for each further one.
    max_wait: seconds of a Retry-After that are waited; longer is given up.
    timeout: seconds to connect, and between two pieces of an answer.
    max_seconds: for one whole answer.
    max_redirects: in a row.
    allow: networks, as "10.1.0.0/16", that may be asked although they are
      private or this very machine.
  """

  user_agent: str
  requests_per_second: float = 5.0
  connections: int = 2
  retries: int = 4
  backoff: float = 1.0
  max_wait: float = 300.0
  timeout: float = 20.0
  max_seconds: float = 120.0
  max_redirects: int = 5
  allow: tuple[str, ...] = ()

  def __post_init__(self):
    agent = self.user_agent.strip()
    contact = "@" in agent or "://" in agent
    if not contact or not agent.isascii() or "\n" in agent:
      raise UserError(
        f"--user_agent={self.user_agent!r}: must say who asks and how to reach "
        "them, as 'NAME/1.0 (https://example.org/about; me@example.org)'"
      )
    for field in dataclasses.fields(self):
      least = {"retries": 0, "max_redirects": 0, "backoff": 0, "max_wait": 0}
      value, smallest = getattr(self, field.name), least.get(field.name)
      if isinstance(value, str | tuple):
        continue
      finite = 0 <= value < math.inf  # Which nan is not, either.
      if not finite or (value == 0 and smallest is None):
        raise UserError(f"--{field.name}={value}: must be positive")
    for network in self.allow:
      try:
        ipaddress.ip_network(network)
      except ValueError as error:
        raise UserError(f"--allow: {error}") from error

  @property
  def token(self) -> str:
    """What robots.txt calls this program."""
    return self.user_agent.split("/")[0].split()[0]


class Origin:
  """A scheme, host and port; all threads of a process share one of each.

  Attributes:
    name: "https://example.org:443".
    lock: held by who asks for robots.txt, so that it is asked for once.
    robots: what `parse_robots` made of it; None: not known yet.
    dead_until: by the clock; robots.txt could not be had when last asked for.
  """

  def __init__(self, parts: urllib.parse.SplitResult, limits: Limits):
    self.name = origin_name(parts)
    self.lock = threading.Lock()
    self.robots: Callable[[str], bool] | None = None
    self.dead_until = 0.0
    self._scheme, self._host = parts.scheme, parts.hostname
    self._port = parts.port or _PORTS[parts.scheme]
    self._limits = limits
    self._interval = 1 / limits.requests_per_second
    self._pace = threading.Lock()
    self._next = 0.0  # When the next request may go out, by the clock.
    self._pool: urllib3.HTTPConnectionPool | None = None

  def wait(self) -> None:
    """Returns when this thread may send the next request."""
    with self._pace:
      start = max(self._next, time.monotonic())
      self._next = start + self._interval
    time.sleep(max(0.0, start - time.monotonic()))

  def pause(self, seconds: float) -> None:
    """Lets no thread send anything for so long."""
    with self._pace:
      self._next = max(self._next, time.monotonic() + seconds)

  def slow_down(self, interval: float) -> None:
    """Waits for at least so many seconds between requests, from now on."""
    self._interval = max(self._interval, interval)

  def pool(self) -> urllib3.HTTPConnectionPool:
    """Returns connections to an address that has been looked at.

    Raises:
      Fault: "unknown_host", or "private_address".
    """
    # The address that was looked at is the one connected to: a name that is
    # asked for again may have changed its mind.
    if self._pool is None:
      address = self._address()
      options = {
        "port": self._port,
        "maxsize": self._limits.connections,
        "block": False,
        "max_seconds": self._limits.max_seconds,
      }
      if self._scheme == "https":
        options["server_hostname"] = options["assert_hostname"] = self._host
        options["cert_reqs"] = "CERT_REQUIRED"
        self._pool = HTTPSPool(address, **options)
      else:
        self._pool = HTTPPool(address, **options)
    return self._pool

  def forget_address(self) -> None:
    """Looks the host up again next time: it could not be reached."""
    self._pool = None

  def _address(self) -> str:
    try:
      found = socket.getaddrinfo(
        self._host, self._port, type=socket.SOCK_STREAM
      )
    except (OSError, UnicodeError) as error:
      raise Fault("unknown_host", self._host, lasting=False) from error
    addresses = [entry[4][0] for entry in found]
    for address in addresses:
      if not self._is_allowed(ipaddress.ip_address(address.partition("%")[0])):
        raise Fault("private_address", f"{self._host} is {address}")
    return addresses[0]

  def _is_allowed(
    self, address: ipaddress.IPv4Address | ipaddress.IPv6Address
  ) -> bool:
    # An IPv4 address in IPv6's clothes is judged as what it is.
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_global and not address.is_multicast:
      return True
    networks = map(ipaddress.ip_network, self._limits.allow)
    return any(address in network for network in networks)


def origin_name(parts: urllib.parse.SplitResult) -> str:
  """Returns scheme, host and port of a URL that `split_url` has checked."""
  return f"{parts.scheme}://{parts.netloc.lower()}"


def split_url(url: str) -> urllib.parse.SplitResult:
  """Takes a URL apart.

  Raises:
    Fault: "bad_url": not http(s), no host, a password, a port that is none.
  """
  try:
    parts = urllib.parse.urlsplit(url)
    valid = parts.scheme in _PORTS and parts.hostname and parts.port != 0
    if valid and not parts.netloc.isascii():
      host = parts.netloc.encode("idna").decode()
      parts = parts._replace(netloc=host)
  except ValueError as error:  # Also what no name of a host may be.
    raise Fault("bad_url", str(error)) from error
  if not valid or "@" in parts.netloc:
    raise Fault("bad_url", "must be http(s)://HOST/..., without a password")
  return parts


def parse_robots(
  text: str, limits: Limits, origin: Origin
) -> Callable[[str], bool]:
  """Returns whether robots.txt lets one fetch a URL (RFC 9309).

  A Crawl-delay or Request-rate, which RFC 9309 does not know, slows down.
  """
  rules = protego.Protego.parse(text)
  if delay := rules.crawl_delay(limits.token):
    origin.slow_down(delay)
  if rate := rules.request_rate(limits.token):
    origin.slow_down(rate.seconds / rate.requests)
  return lambda url: rules.can_fetch(url, limits.token)
