"""What Apache Beam does, on one machine or many.

Three stages, a pipeline each, whose results are written whole, so that a
restart goes on after them:

1. rows (wit): each table's rows go to the shard that their image belongs to;
2. fetch (wit): the images, all of one server on one worker, at its pace;
3. write: a shard each, independently of all others.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import contextlib
import gzip
import io
import itertools
import json
import urllib.parse

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from big_siglip.errors import UserError
from big_siglip.preparation import shards, wit
from big_siglip.preparation.fetch import Fetcher
from big_siglip.preparation.files import write_whole
from big_siglip.preparation.folder import Folder
from big_siglip.preparation.records import Fault, Record, Tally

_AT_ONCE = 256  # Images that are handed to the threads of a server.


def check_arguments(arguments: list[str]) -> list[str]:
  """Returns Beam's flags, which it does not check by itself.

  Raises:
    UserError: one is unknown or has a wrong value.
  """
  told = io.StringIO()
  try:
    with contextlib.redirect_stderr(told):
      beam.Pipeline(options=PipelineOptions(arguments))
  except ValueError as error:  # A runner that does not exist.
    raise UserError(f"Beam's flags: {error}") from error
  except SystemExit as error:  # As argparse, which prints a page, leaves.
    reason = told.getvalue().strip().splitlines()[-1]
    raise UserError(f"Beam's flags: {reason}") from error
  return arguments


def run(
  folder: Folder, arguments: list[str], say: Callable[[str], None]
) -> None:
  """Runs those stages that are not done yet.

  Args:
    folder: of the job.
    arguments: Beam's own flags, as "--runner=FlinkRunner".
    say: shows a line of progress.
  """
  options = PipelineOptions(arguments)
  job = folder.job
  if job.kind == "wit":
    if folder.missing_rows():
      say(f"reading the rows of {len(job.inputs)} files")
      with beam.Pipeline(options=options) as pipeline:
        _sort_rows(pipeline, folder)
    if not folder.fetched_file.exists():
      say("fetching images")
      with beam.Pipeline(options=options) as pipeline:
        _fetch(pipeline, folder)
      write_whole(folder.fetched_file, b"")
  missing = folder.missing_parts()
  if missing:
    say(f"writing {len(missing)} of {job.num_shards} shards")
    with beam.Pipeline(options=options) as pipeline:
      _each(pipeline, missing) | beam.Map(_write_part, folder=folder)


def _each(pipeline: beam.Pipeline, numbers: Iterable[int]) -> beam.PCollection:
  """Spreads numbers over the workers."""
  return pipeline | beam.Create(list(numbers)) | beam.Reshuffle()


def _sort_rows(pipeline: beam.Pipeline, folder: Folder) -> None:
  rows = _each(pipeline, range(len(folder.job.inputs))) | beam.FlatMap(
    _read_rows, folder=folder
  )
  # A shard without rows is a shard all the same.
  empty = pipeline | "Shards" >> beam.Create(
    [(number, None) for number in range(folder.job.num_shards)]
  )
  (
    (rows, empty)
    | beam.Flatten()
    | beam.GroupByKey()
    | beam.Map(_write_rows, folder=folder)
  )


_Row = tuple[str, int, int, dict]  # Key, number of the input, line, record.


def _read_rows(number: int, folder: Folder) -> Iterator[tuple[int, _Row]]:
  job, tally = folder.job, Tally()
  for line, record in wit.read(
    job.input(number), job.captions, job.filters, tally
  ):
    key = record.key
    shard = int(key[:8], 16) * job.num_shards >> 32
    yield shard, (key, number, line, record.to_json())
  write_whole(folder.tally_file(number), json.dumps(tally.to_json()).encode())


def _write_rows(
  group: tuple[int, Iterable[_Row | None]], folder: Folder
) -> None:
  number, rows = group
  rows = sorted((row for row in rows if row), key=lambda row: row[:3])
  records = wit.merge(Record.from_json(row[3]) for row in rows)
  lines = "".join(json.dumps(record.to_json()) + "\n" for record in records)
  # The same rows give the same bytes: no time of writing.
  write_whole(folder.rows_file(number), gzip.compress(lines.encode(), mtime=0))


def _fetch(pipeline: beam.Pipeline, folder: Folder) -> None:
  (
    _each(pipeline, range(folder.job.num_shards))
    | beam.FlatMap(_unsettled, folder=folder)
    | beam.GroupByKey()
    | beam.Map(_fetch_host, folder=folder)
  )


def _read_records(folder: Folder, number: int) -> Iterator[Record]:
  lines = gzip.decompress(folder.rows_file(number).read_bytes()).splitlines()
  return (Record.from_json(json.loads(line)) for line in lines)


def _unsettled(number: int, folder: Folder) -> Iterator[tuple[str, str]]:
  """Yields (host, URL) of what has to be asked for."""
  for record in _read_records(folder, number):
    if not folder.store.is_settled(record.key):
      try:
        host = urllib.parse.urlsplit(record.image_url).netloc.lower()
      except ValueError:  # Its fault is told when it is asked for.
        host = ""
      yield host, record.image_url


def _fetch_host(group: tuple[str, Iterable[str]], folder: Folder) -> None:
  """Fetches all images of one server: Beam gives a key to one worker alone."""
  _, urls = group
  limits, store = folder.job.limits, folder.store
  fetcher = Fetcher(limits)

  def fetch(url: str) -> None:
    key = Record(name=url, captions=()).key
    try:
      store.save(key, fetcher.fetch(url))
    except Fault as fault:
      store.save_fault(key, fault)

  urls = iter(urls)
  with futures.ThreadPoolExecutor(limits.connections) as threads:
    while batch := list(itertools.islice(urls, _AT_ONCE)):
      list(threads.map(fetch, batch))  # The list raises what they raise.


def _write_part(number: int, folder: Folder) -> None:
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
