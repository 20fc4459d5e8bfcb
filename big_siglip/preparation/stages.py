"""What a worker does with one table, server or shard; knows nothing of Beam."""

from collections.abc import Container, Iterable, Iterator
from concurrent import futures
import gzip
import itertools
import json
import logging
import time
import urllib.parse

from big_siglip.preparation import shards, wit
from big_siglip.preparation.fetch import Fetcher
from big_siglip.preparation.files import write_whole
from big_siglip.preparation.folder import Folder
from big_siglip.preparation.records import Fault, key_of, Record, Tally

_AT_ONCE = 256  # Images that are handed to the threads of a server.
_SECONDS = 30.0  # Between lines of progress.
_log = logging.getLogger(__name__)
_Row = tuple[str, int, int, bytes]  # Key, number of the input, line, record.


def read_rows(
  number: int, folder: Folder, wanted: Container[int]
) -> Iterator[tuple[int, _Row]]:
  """Yields (shard, row) of the rows that stay, then writes what was counted.

  Args:
    number: of the table.
    folder: of the job.
    wanted: the shards of this pass; rows of others are read for nothing.
  """
  job, tally = folder.job, Tally()
  for line, record in wit.read(
    job.input(number), job.captions, job.filters, tally
  ):
    key = record.key
    shard = int(key[:8], 16) * job.num_shards >> 32
    if shard in wanted:
      # As one value: Beam would look at every field of a dict.
      yield shard, (key, number, line, wit.pack(record))
  write_whole(folder.tally_file(number), json.dumps(tally.to_json()).encode())


def write_rows(
  group: tuple[int, Iterable[_Row | None]], folder: Folder
) -> None:
  """Writes a shard's rows, one for each image, sorted by its key."""
  number, rows = group
  rows = sorted((row for row in rows if row), key=lambda row: row[:3])
  records = wit.merge(wit.unpack(row[3]) for row in rows)
  lines = "".join(json.dumps(record.to_json()) + "\n" for record in records)
  # The same rows give the same bytes: no time of writing.
  write_whole(folder.rows_file(number), gzip.compress(lines.encode(), mtime=0))


def _read_records(folder: Folder, number: int) -> Iterator[Record]:
  lines = gzip.decompress(folder.rows_file(number).read_bytes()).splitlines()
  return (Record.from_json(json.loads(line)) for line in lines)


def unsettled(number: int, folder: Folder) -> Iterator[tuple[str, str]]:
  """Yields (host, URL) of what has to be asked for."""
  for record in _read_records(folder, number):
    if not folder.store.is_settled(record.key):
      try:
        host = urllib.parse.urlsplit(record.image_url).netloc.lower()
      except ValueError:  # Its fault is told when it is asked for.
        host = ""
      yield host, record.image_url


def fetch_host(group: tuple[str, Iterable[str]], folder: Folder) -> None:
  """Fetches all images of one server: Beam gives a key to one worker alone."""
  host, urls = group
  limits, store = folder.job.limits, folder.store
  fetcher = Fetcher(limits, folder.job.of_images)

  def fetch(url: str) -> bool:
    try:
      store.save(key_of(url), fetcher.fetch(url))
    except Fault as fault:
      store.save_fault(key_of(url), fault)
      return False
    return True

  urls, fetched, asked, told = iter(urls), 0, 0, time.monotonic()
  with futures.ThreadPoolExecutor(limits.connections) as threads:
    while batch := list(itertools.islice(urls, _AT_ONCE)):
      fetched += sum(threads.map(fetch, batch))
      asked += len(batch)
      if time.monotonic() > told + _SECONDS:
        told = time.monotonic()
        _log.info("%s: %d images of %d asked for", host, fetched, asked)


def write_part(number: int, folder: Folder) -> None:
  """Writes one shard of the data set, and what was counted meanwhile."""
  job, tally = folder.job, Tally()
  if job.kind == "wit":
    records = _with_images(folder, number, tally)
  else:
    records = job.read(number, tally)
  shards.write_shard(folder.parts, number, records, tally, job.test_share)


def _with_images(folder: Folder, number: int, tally: Tally) -> Iterator[Record]:
  store = folder.store
  for record in _read_records(folder, number):
    image = store.image(record.key)
    if image:
      yield record.with_image(image)
    else:
      fault = store.fault(record.key) or Fault("lost", "its file has gone")
      tally.fault(fault, record.image_url)
