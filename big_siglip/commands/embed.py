"""Embeds images or texts, millions of them, into Parquet files.

big-siglip embed --checkpoint=models/b16 --images=PHOTOS --output=vectors
big-siglip embed --checkpoint=models/b16 --images=PHOTOS --output=vectors \
  --update
big-siglip embed --checkpoint=models/b16 --output=vectors \
  --images='cc12m/{00000..01242}.tar'
big-siglip embed --checkpoint=runs/scenes --texts=captions.csv \
  --column=caption --output=vectors --dtype=float16

Started again it goes on where it ended or was killed: whole shards stay.
--update takes in what is new or has changed since, and drops what is gone; it
can be killed, too. --distributed shares the work among processes, each started
by the same command. Rows have a key (an image's path in the folder, or the
number of a line), the text, the embedding, of length 1, and columns to filter
by. --patches keeps what each patch knows in place of one embedding
(docs/dense.md). _skipped.jsonl lists what cannot be read. docs/embeddings.md
says more.
"""

import dataclasses
import json
import os
import pathlib
import time
from typing import Any
import warnings

from absl import flags, logging

from big_siglip import extras, progress
from big_siglip.errors import exit_on_error, naming, RunStopped, UserError

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
_PATCHES = flags.DEFINE_string(
  "patches", None, "Of images, their patches: last, text, value or share."
)
_LAYER = flags.DEFINE_integer(
  "layer", -1, "Of --patches: -1 the last block's, -2 those before."
)
_SIZE = flags.DEFINE_integer(
  "size", None, "Of --patches: pixels that images are resized to."
)
_UPDATE = flags.DEFINE_bool(
  "update", False, "Embed what is new or has changed; drop what is gone."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Join other processes, as config.distributed does."
)
_SHARD_SIZE = flags.DEFINE_integer(
  "shard_size", None, "Inputs of a file; 10,000, or as the folder has."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Rows at once.")
_NUM_THREADS = flags.DEFINE_integer(
  "num_threads", os.cpu_count() or 1, "Threads that read and decode."
)
_DTYPE = flags.DEFINE_string(
  "dtype", None, "float32; or float16, half the size, as patches have."
)
_JSON = flags.DEFINE_bool("json", False, "Print the result as JSON.")
_DTYPES = ("float32", "float16")
_SHARD, _SHARD_BYTES = 10_000, 2**28  # Inputs of a file; bytes of patches.


def main(argv: list[str]) -> None:
  """Embeds what is missing and prints counts and speed."""
  logging.set_verbosity(logging.ERROR)
  # Of Pillow; what cannot be read is listed.
  warnings.filterwarnings("ignore", module="PIL")
  with exit_on_error():
    _check_flags(argv[1:])
    with progress.loading():
      # Before what takes minutes.
      with extras.needed_by("big-siglip embed"):
        import pyarrow  # noqa: F401
      from big_siglip import embeddings, platforms
      from big_siglip.run import processes

    if _IMAGES.value:
      path, read = _IMAGES.value, embeddings.read_images
    else:
      path, read = _TEXTS.value, embeddings.read_texts
    with progress.waiting("listing the inputs"):
      inputs = read(path, _COLUMN.value, _DATA.value, _SPLIT.value)
    platforms.prepare(keep=not _DISTRIBUTED.value)
    if _DISTRIBUTED.value:
      with naming({"config.distributed": "--distributed"}):
        processes.join()
    with processes.stopping_together():
      _embed(inputs)


def _embed(inputs) -> None:
  """Embeds, and prints what was done."""
  import jax

  import big_siglip
  from big_siglip import embeddings
  from big_siglip.data import embedding_description
  from big_siglip.embeddings import description as descriptions

  # Each process computes for itself: what one has to do is not the others'.
  alone = jax.process_count() == 1
  model = big_siglip.load(
    _CHECKPOINT.value, **({} if alone else {"device": jax.local_devices()})
  )
  look = None
  if _PATCHES.value:
    look = _look(model)
  else:
    model.embedder(inputs.kind)  # Before a folder is made.
  folder = pathlib.Path(_OUTPUT.value).expanduser()
  is_there = embedding_description.description_file(folder).exists()
  with progress.waiting("naming the model by its parameters", after=4):
    if look:
      asked, seen = look
      made = descriptions.describe_patches(
        model, _CHECKPOINT.value, asked, seen
      )
      model = seen.of(model)
    else:
      made = embeddings.describe_model(model, _CHECKPOINT.value)
  size, dtype = _SHARD, _DTYPE.value or "float32"
  if look:
    size = max(min(_SHARD, _SHARD_BYTES // (4 * made["width"])), 1)
    dtype = _DTYPE.value or "float16"
  if is_there:
    size = embedding_description.read(folder).shard_size
  size = _SHARD_SIZE.value or size
  description = descriptions.describe(inputs, made, dtype, size)
  if look and not is_there:
    descriptions.check_disk(folder, description, len(inputs))
  run = _update if _UPDATE.value and is_there else _go_on
  result = run(folder, description, model, inputs)
  if jax.process_index() == 0:  # One speaks for all.
    _print_result(result, inputs.kind)
  if not result["rows"]:
    raise RunStopped(f"none of {len(inputs)} {inputs.kind} can be read")


def _look(model):
  """Returns the patches that are asked for, and what sees them."""
  from big_siglip.models.patches import Patches
  from big_siglip.models.resolution import Resolution

  asked = Patches(_PATCHES.value, _LAYER.value)
  with naming({"kind": "--patches", "layer": "--layer", "size": "--size"}):
    return asked, model.look(asked, Resolution(_SIZE.value))


def _go_on(folder, description, model, inputs) -> dict[str, Any]:
  """Embeds the shards that the folder has not."""
  import jax

  from big_siglip import embeddings
  from big_siglip.run import processes

  leads = jax.process_index() == 0
  if not leads:
    processes.wait_for_all("the folder is described")
  writer = embeddings.Writer(folder, description, leads)
  if leads:
    processes.wait_for_all("the folder is described")
  skipped = writer.num_skipped
  done = writer.num_rows + skipped
  missing = {number: description.shard(number) for number in writer.missing}
  # All have listed what is missing before one writes any of it.
  processes.wait_for_all("the shards are listed")
  now = _run(writer, model, inputs, missing, len(inputs) - done)
  writer.look_again()
  writer.close()
  return {
    "output": _OUTPUT.value,
    "rows": writer.num_rows,
    "skipped": writer.num_skipped,
    "skipped_now": writer.num_skipped - skipped,
    **now,
  }


def _update(folder, description, model, inputs) -> dict[str, Any]:
  """Brings a folder up to what the inputs are now."""
  from big_siglip.embeddings import folder as folders
  from big_siglip.embeddings.update import Update
  from big_siglip.run import processes

  with folders.writing(folder):
    update = Update(folder, description, inputs, _NUM_THREADS.value)
    if len(set(processes.gather(update.token))) > 1:
      raise RunStopped(
        f"{inputs.path}: changed while the processes looked at it; start again"
      )
    counts = update.counts
    progress.say(
      f"{counts.added} {inputs.kind} are new, {counts.changed} have changed, "
      f"{counts.removed} are gone, {counts.same} are the same"
    )
    if update.is_old:
      progress.say(
        f"{folder} was made before it was noted what its images were: all are "
        "embedded again, this once"
      )
    now = _run(
      update, model, inputs, update.shards, update.num_new, update.before
    )
    rows, skipped = update.commit()
  return {
    "output": _OUTPUT.value,
    "rows": rows,
    "skipped": skipped,
    **dataclasses.asdict(counts),
    **now,
  }


def _run(writer, model, inputs, shards, total, before=None) -> dict[str, Any]:
  """Embeds this process's part of some shards; returns what all did."""
  import jax

  from big_siglip.embeddings.pipeline import embed_missing
  from big_siglip.run import processes

  count = jax.process_count()
  own = dict(list(shards.items())[jax.process_index() :: count])
  start = time.perf_counter()
  with progress.Progress(-(-total // count), inputs.kind) as show:
    embedded = embed_missing(
      writer,
      model,
      inputs,
      own,
      batch_size=_BATCH_SIZE.value,
      num_threads=_NUM_THREADS.value,
      progress=show.add,
      before=before,
    )
  # Which waits for all, too.
  embedded = sum(map(int, processes.gather(str(embedded))))
  seconds = time.perf_counter() - start
  return {
    "embedded_now": embedded,
    "seconds": seconds,
    "per_second": embedded / seconds,
  }


def _check_flags(arguments: list[str]) -> None:
  for flag in (_CHECKPOINT, _OUTPUT):
    if not flag.value:
      raise UserError(f"--{flag.name}={flag.name.upper()} must be given")
  if bool(_IMAGES.value) == bool(_TEXTS.value):
    raise UserError("either --images=FOLDER or --texts=FILE must be given")
  for flag in (_SHARD_SIZE, _BATCH_SIZE, _NUM_THREADS):
    if flag.value is not None and flag.value < 1:
      raise UserError(f"--{flag.name}={flag.value}: must be at least 1")
  if _PATCHES.value and not _IMAGES.value:
    raise UserError("--patches: goes with --images")
  if not _PATCHES.value and (_SIZE.value or _LAYER.value != -1):
    raise UserError("--size and --layer: go with --patches")
  if _DTYPE.value not in (None, *_DTYPES):
    allowed = " or ".join(_DTYPES)
    raise UserError(f"--dtype={_DTYPE.value}: must be {allowed}")
  if arguments:
    raise UserError(f"{arguments[0]!r}: belongs to no flag")


def _print_result(result, kind) -> None:
  if _JSON.value:
    print(json.dumps(result))
    return
  print(
    f"{result['output']}: {result['rows']} {kind} embedded, "
    f"{result['skipped']} skipped"
  )
  if "added" in result:
    print(
      f"{result['added']} new, {result['changed']} changed, "
      f"{result['removed']} dropped, {result['same']} as they were"
    )
  print(
    f"of these now: {result['embedded_now']}, in {result['seconds']:.1f} s: "
    f"{result['per_second']:.1f} {kind}/s"
  )
