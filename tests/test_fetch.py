"""Fetching images from a server that fails, stalls, redirects and lies."""

from concurrent import futures
import time

import image_server
import pytest

from big_siglip.errors import UserError
from big_siglip.preparation.fetch import Fetcher
from big_siglip.preparation.origins import Limits
from big_siglip.preparation.records import Fault, ImageLimits

AGENT = "test-fetcher/1.0 (me@example.org)"


@pytest.fixture(scope="module")
def server():
  with image_server.serve() as server:
    yield server


def make_fetcher(**fields):
  limits = dict(
    user_agent=AGENT,
    requests_per_second=500,
    retries=2,
    backoff=0.01,
    timeout=0.3,
    max_seconds=0.8,
    allow=("127.0.0.1/32",),
  )
  of_images = ImageLimits(max_bytes=1_000_000)
  return Fetcher(Limits(**{**limits, **fields}), of_images)


def fault_of(fetcher, url):
  with pytest.raises(Fault) as e:
    fetcher.fetch(url)
  assert "\n" not in e.value.detail
  return e.value


@pytest.mark.parametrize(
  "path, number, asked",
  [
    ("good/5", 5, 1),
    ("once500/6", 6, 2),
    ("moved", 77, 1),
    ("inutf8", 3, 1),
    ("someday/9", 9, 2),
    ("wrongtype/8", 8, 1),
  ],
)
def test_what_can_be_had_is_had(server, path, number, asked):
  data = make_fetcher().fetch(server.url(path))
  assert data == image_server.picture(number)
  assert server.requests[f"/{path}"] == asked
  assert server.agents == {AGENT}


@pytest.mark.parametrize(
  "path, kind, lasting, asked",
  [
    ("gone", "http_404", True, 1),
    ("always500", "http_500", False, 3),
    ("tomorrow", "http_429", False, 1),
    ("stall", "timeout", False, 3),
    ("drip", "timeout", False, 3),
    ("drip_head", "timeout", False, 3),
    ("hangup", "protocol", False, 3),
    ("circle/a", "redirect", True, 1),
    ("far/1", "redirect", True, 1),
    ("tofile", "redirect", True, 1),
    ("tometadata", "private_address", True, 1),
    ("tosecret", "robots", True, 1),
    ("secret/3", "robots", True, 0),
    ("html", "not_an_image", True, 1),
    ("cut/9", "truncated", False, 3),
    ("half/9", "broken_image", True, 1),
    ("huge", "too_large", True, 1),
    ("digits", "too_large", True, 1),
    ("endless", "too_large", True, 1),
    ("bomb", "too_many_pixels", True, 1),
    ("packed/4", "encoding", True, 1),
  ],
)
def test_every_fault_has_its_kind(server, path, kind, lasting, asked):
  fault = fault_of(make_fetcher(), server.url(path))
  assert (fault.kind, fault.lasting) == (kind, lasting), fault
  assert server.requests[f"/{path}"] == asked
  assert not server.requests["/secret/1"] and not server.requests["/far/7"]


@pytest.mark.parametrize(
  "url, kind",
  [
    ("file:///etc/passwd", "bad_url"),
    ("ftp://example.org/a.jpg", "bad_url"),
    ("http:///a.jpg", "bad_url"),
    ("http://[bad/a.jpg", "bad_url"),
    ("http://example.org:99999/", "bad_url"),
    ("http://user:word@127.0.0.1/", "bad_url"),
    ("", "bad_url"),
    ("http://10.1.2.3/a.jpg", "private_address"),
    ("http://[::1]/a.jpg", "private_address"),
    ("http://[::ffff:169.254.169.254]/", "private_address"),
    ("http://2130706434/a.jpg", "private_address"),  # 127.0.0.2
    ("http://no-such-host.invalid/a.jpg", "robots_unreachable"),
  ],
)
def test_urls_that_lead_nowhere_good(url, kind):
  assert fault_of(make_fetcher(retries=0), url).kind == kind


def test_this_machine_is_refused_unless_allowed(server):
  fault = fault_of(make_fetcher(allow=()), server.url("good/1"))
  assert fault.kind == "private_address" and "127.0.0.1" in fault.detail


def test_names_are_looked_at_as_addresses(server):
  url = server.url("good/2").replace("127.0.0.1", "localhost")
  assert fault_of(make_fetcher(allow=()), url).kind == "private_address"


def test_retry_after_is_waited_for_by_all_threads(server):
  fetcher = make_fetcher(timeout=5, max_seconds=9)
  fetcher.fetch(server.url("good/1"))  # So that robots.txt is known.
  with futures.ThreadPoolExecutor(2) as threads:
    busy = threads.submit(fetcher.fetch, server.url("busy/3"))
    while not server.times["/busy/3"]:
      time.sleep(0.01)
    time.sleep(0.2)  # Until its answer is read.
    threads.submit(fetcher.fetch, server.url("good/31")).result()
  assert busy.result() == image_server.picture(3)
  refused, again = server.times["/busy/3"]
  assert again - refused >= 1
  assert server.times["/good/31"][0] - refused >= 1


def test_requests_keep_their_pace_whatever_the_threads(server):
  fetcher = make_fetcher(requests_per_second=50, connections=8)
  paths = [f"good/{number}" for number in range(200, 212)]
  with futures.ThreadPoolExecutor(8) as threads:
    list(threads.map(fetcher.fetch, map(server.url, paths)))
  times = sorted(t for p in paths for t in server.times[f"/{p}"])
  assert times[-1] - times[0] >= 0.9 * 11 / 50


@pytest.mark.parametrize(
  "robots, kind",
  [
    ((404, ""), None),
    ((403, ""), None),  # RFC 9309, section 2.3.1.3: as if there were none.
    ((500, ""), "robots_unreachable"),
    ((200, "User-agent: test-fetcher\nDisallow: /"), "robots"),
    ((200, "\ufeffUser-agent: *\nDisallow: /"), "robots"),
    ((200, "User-agent: other\nDisallow: /"), None),
    # The longer path wins, wherever it stands.
    ((200, "User-agent: *\nAllow: /good/\nDisallow: /*.jpg$"), "robots"),
    ((200, "User-agent: *\nDisallow: /*.jpg$\nAllow: /good/*.jpg"), None),
    ((200, "\0\xff<html>"), None),
  ],
)
def test_robots_are_obeyed_and_asked_for_once(robots, kind):
  with image_server.serve(robots=robots) as server:
    fetcher = make_fetcher(retries=0)
    urls = [server.url(f"good/{number}.jpg") for number in range(3)]
    for url in urls:
      if kind:
        assert fault_of(fetcher, url).kind == kind
      else:
        assert fetcher.fetch(url)
    assert server.requests["/robots.txt"] == 1
    assert bool(server.requests["/good/0.jpg"]) == (kind is None)


def test_crawl_delay_slows_down():
  robots = (200, "User-agent: *\nCrawl-delay: 0.2\n")
  with image_server.serve(robots=robots) as server:
    fetcher = make_fetcher()
    for number in range(3):
      fetcher.fetch(server.url(f"good/{number}"))
    (first,), (last,) = server.times["/good/0"], server.times["/good/2"]
    assert last - first >= 0.36


def test_limits_are_checked():
  for agent in ("", "Mozilla/5.0", "me\n@x"):
    with pytest.raises(UserError, match="--user_agent=.*must say who asks"):
      Limits(user_agent=agent)
  with pytest.raises(UserError, match="--requests_per_second=0: must be pos"):
    Limits(user_agent=AGENT, requests_per_second=0)
  for value in (float("nan"), float("inf")):
    with pytest.raises(UserError, match="--timeout=(nan|inf): must be pos"):
      Limits(user_agent=AGENT, timeout=value)
  with pytest.raises(UserError, match="--allow: 10.0.0.1/8 has host"):
    Limits(user_agent=AGENT, allow=("10.0.0.1/8",))
  assert Limits(user_agent=AGENT, retries=0).token == "test-fetcher"
