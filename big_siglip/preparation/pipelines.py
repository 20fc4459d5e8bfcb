"""What Apache Beam does, on one machine or many.

Three stages, a pipeline each, whose results are written whole, so that a
restart goes on after them:

1. rows (wit): each table's rows go to the shard that their image belongs to;
2. fetch (wit): the images, all of one server on one worker, at its pace;
3. write: a shard each, independently of all others.
"""

from collections.abc import Callable, Iterable
import contextlib
import io

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from big_siglip.errors import UserError
from big_siglip.preparation import stages
from big_siglip.preparation.files import write_whole
from big_siglip.preparation.folder import Folder
from big_siglip.progress import waiting


def check_arguments(arguments: list[str]) -> list[str]:
  """Returns Beam's flags, which it does not check by itself.

  Raises:
    UserError: one is unknown or has a wrong value.
  """
  told = io.StringIO()
  try:
    with contextlib.redirect_stderr(told):
      options = PipelineOptions(arguments)
      options.get_all_options()  # Reads the values, which the line above won't.
      beam.Pipeline(options=options)
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
    missing = folder.missing_rows()
    size = -(-job.num_shards // job.passes)
    for start in range(0, len(missing), size):
      wanted = missing[start : start + size]
      say(f"reading {len(job.inputs)} files for {len(wanted)} shards' rows")
      with (
        waiting("reading rows", after=4),
        beam.Pipeline(options=options) as pipeline,
      ):
        _sort_rows(pipeline, folder, wanted)
    if not folder.fetched_file.exists():
      say("fetching images")
      with (
        waiting("fetching images", after=4),
        beam.Pipeline(options=options) as pipeline,
      ):
        _fetch(pipeline, folder)
      write_whole(folder.fetched_file, b"")
  missing = folder.missing_parts()
  if missing:
    say(f"writing {len(missing)} of {job.num_shards} shards")
    with (
      waiting("writing shards", after=4),
      beam.Pipeline(options=options) as pipeline,
    ):
      _each(pipeline, missing) | beam.Map(stages.write_part, folder=folder)


def _each(pipeline: beam.Pipeline, numbers: Iterable[int]) -> beam.PCollection:
  """Spreads numbers over the workers."""
  return pipeline | beam.Create(list(numbers)) | beam.Reshuffle()


def _sort_rows(
  pipeline: beam.Pipeline, folder: Folder, wanted: list[int]
) -> None:
  rows = _each(pipeline, range(len(folder.job.inputs))) | beam.FlatMap(
    stages.read_rows, folder=folder, wanted=frozenset(wanted)
  )
  # A shard without rows is a shard all the same.
  empty = pipeline | "Shards" >> beam.Create(
    [(number, None) for number in wanted]
  )
  (
    (rows, empty)
    | beam.Flatten()
    | beam.GroupByKey()
    | beam.Map(stages.write_rows, folder=folder)
  )


def _fetch(pipeline: beam.Pipeline, folder: Folder) -> None:
  (
    _each(pipeline, range(folder.job.num_shards))
    | beam.FlatMap(stages.unsettled, folder=folder)
    | beam.GroupByKey()
    | beam.Map(stages.fetch_host, folder=folder)
  )
