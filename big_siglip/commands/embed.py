"""Embeds images or texts, millions of them, into Parquet files.

big-siglip embed --checkpoint=models/b16 --images=PHOTOS --output=vectors
big-siglip embed --checkpoint=models/b16 --output=vectors \
  --images='cc12m/{00000..01242}.tar'
big-siglip embed --checkpoint=runs/scenes --texts=captions.csv \
  --column=caption --output=vectors --dtype=float16

Started again it goes on where it ended or was killed: whole shards stay. Rows
have a key (an image's path in the folder, or the number of a line), the text,
and the embedding, of length 1. _skipped.jsonl lists what cannot be read. Tar
shards, Parquet, ArrayRecord and TFDS are taken as well: docs/formats.md.
"""

import json
import os
import pathlib
import sys
import time
import warnings

from absl import flags, logging

from big_siglip.errors import exit_on_error, RunStopped, UserError

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's or model's folder, or published weights."
)
_IMAGES = flags.DEFINE_string(
  "images", None, "A folder, with all below it; a list; shards of a data set."
)
_TEXTS = flags.DEFINE_string(
  "texts", None, "A file with a text in each line; a table; a data set."
)
_COLUMN = flags.DEFINE_string(
  "column", None, "Of a table or data set; found by its name unless given."
)
_DATA = flags.DEFINE_string(
  "data", None, "The format of a data set, as config.data.name; or seen."
)
_SPLIT = flags.DEFINE_string("split", None, "Of a data set; all unless given.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write.")
_SHARD_SIZE = flags.DEFINE_integer("shard_size", 10_000, "Inputs of a file.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Rows at once.")
_NUM_THREADS = flags.DEFINE_integer(
  "num_threads", os.cpu_count() or 1, "Threads that read and decode."
)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Or float16: half the size.")
_JSON = flags.DEFINE_bool("json", False, "Print the result as JSON.")
_DTYPES = ("float32", "float16")
_SECONDS = 10.0  # Between lines of progress.


def main(argv: list[str]) -> None:
  """Embeds what is missing and prints counts and speed."""
  logging.set_verbosity(logging.ERROR)
  # Of Pillow; what cannot be read is listed.
  warnings.filterwarnings("ignore", module="PIL")
  with exit_on_error():
    _check_flags(argv[1:])
    import big_siglip
    from big_siglip import embeddings, platforms
    from big_siglip.embeddings import description as descriptions

    if _IMAGES.value:
      path, read = _IMAGES.value, embeddings.read_images
    else:
      path, read = _TEXTS.value, embeddings.read_texts
    inputs = read(path, _COLUMN.value, _DATA.value, _SPLIT.value)
    platforms.prepare()
    model = big_siglip.load(_CHECKPOINT.value)
    model.embedder(inputs.kind)  # Before a folder is made.
    description = descriptions.describe(
      inputs,
      embeddings.describe_model(model, _CHECKPOINT.value),
      _DTYPE.value,
      _SHARD_SIZE.value,
    )
    folder = pathlib.Path(_OUTPUT.value).expanduser()
    writer = embeddings.Writer(folder, description)
    result = _embed(writer, model, inputs, description)
    _print_result(result, inputs.kind)
    if not writer.num_rows:
      raise RunStopped(f"none of {len(inputs)} {inputs.kind} can be read")


def _check_flags(arguments: list[str]) -> None:
  for flag in (_CHECKPOINT, _OUTPUT):
    if not flag.value:
      raise UserError(f"--{flag.name}={flag.name.upper()} must be given")
  if bool(_IMAGES.value) == bool(_TEXTS.value):
    raise UserError("either --images=FOLDER or --texts=FILE must be given")
  for flag in (_SHARD_SIZE, _BATCH_SIZE, _NUM_THREADS):
    if flag.value < 1:
      raise UserError(f"--{flag.name}={flag.value}: must be at least 1")
  if _DTYPE.value not in _DTYPES:
    allowed = " or ".join(_DTYPES)
    raise UserError(f"--dtype={_DTYPE.value}: must be {allowed}")
  if arguments:
    raise UserError(f"{arguments[0]!r}: belongs to no flag")


def _embed(writer, model, inputs, description) -> dict[str, float]:
  from big_siglip.embeddings.pipeline import embed_missing

  rows, skipped = writer.num_rows, writer.num_skipped
  shards = {number: description.shard(number) for number in writer.missing}
  show = _Progress(rows + skipped, len(inputs), inputs.kind)
  start = time.perf_counter()
  embed_missing(
    writer,
    model,
    inputs,
    shards,
    batch_size=_BATCH_SIZE.value,
    num_threads=_NUM_THREADS.value,
    progress=show.add,
  )
  seconds = time.perf_counter() - start
  show.close()
  writer.close()
  embedded = writer.num_rows - rows
  return {
    "output": _OUTPUT.value,
    "rows": writer.num_rows,
    "skipped": writer.num_skipped,
    "embedded_now": embedded,
    "skipped_now": writer.num_skipped - skipped,
    "seconds": seconds,
    "per_second": embedded / seconds,
  }


class _Progress:
  """A bar on a terminal, elsewhere a line now and then."""

  def __init__(self, done: int, total: int, unit: str):
    self._done, self._total, self._unit = done, total, unit
    self._first, self._start = done, time.perf_counter()
    self._next = self._start + _SECONDS
    self._bar = None
    if sys.stderr.isatty():
      import tqdm

      self._bar = tqdm.tqdm(initial=done, total=total, unit=f" {unit}")

  def add(self, count: int) -> None:
    self._done += count
    if self._bar:
      self._bar.update(count)
      return
    now = time.perf_counter()
    if now < self._next:
      return
    self._next = now + _SECONDS
    speed = (self._done - self._first) / (now - self._start)
    print(
      f"{self._done} of {self._total} {self._unit}, {speed:.1f} a second",
      file=sys.stderr,
      flush=True,
    )

  def close(self) -> None:
    if self._bar:
      self._bar.close()


def _print_result(result, kind) -> None:
  if _JSON.value:
    print(json.dumps(result))
    return
  print(
    f"{result['output']}: {result['rows']} {kind} embedded, "
    f"{result['skipped']} skipped"
  )
  print(
    f"of these now: {result['embedded_now']} and {result['skipped_now']}, in "
    f"{result['seconds']:.1f} s: {result['per_second']:.1f} {kind}/s"
  )
