"""Prepares WIT, tar shards or Parquet as a TFDS data set, through Apache Beam.

big-siglip prepare wit wit_v1.train.all-*.tsv.gz --output=DATA/wit/1.0.0 \
  --languages=en,de --min_size=128 \
  --user_agent="my-lab/1.0 (https://example.org/crawl; me@example.org)"
big-siglip prepare wit_base data/train-*.parquet --output=DATA/wit/1.0.0
big-siglip prepare tar cc12m/*.tar --output=DATA/cc12m/1.0.0 --name=cc12m
big-siglip prepare parquet *.parquet --output=DATA/p/1.0.0 --captions=text
big-siglip prepare boxes DATA/cc12m/1.0.0 --table=FOUND.parquet \
  --box_format=xyxy --min_score=0.3 --output=DATA/cc12m_boxes/1.0.0

wit: Google's tables, whose images are fetched, politely. wit_base: Wikimedia's
files, which hold them. tar: what img2dataset writes. parquet: any with image
bytes. What stands after a lone -- are Beam's own flags: -- --runner=FlinkRunner
(else all runs here). Killed and started again it goes on. Needs
pip install 'big_siglip[prepare]'; docs/data-prepare.md has more.

boxes: a prepared data set anew, with the boxes that a table has for its images,
such as a detector's. Needs no Beam.
"""

import json
import logging as python_logging
import os
import signal
import types

from absl import flags, logging

from big_siglip import extras, progress
from big_siglip.command_line import parse_arguments
from big_siglip.errors import exit_on_error, UserError
from big_siglip.schema import words

_KINDS = ("wit", "wit_base", "tar", "parquet", "boxes")
_OUTPUT = flags.DEFINE_string("output", None, "The folder of the data set.")
_NAME = flags.DEFINE_string("name", None, "Its name; None: the command's.")
_CAPTIONS = flags.DEFINE_list(
  "captions", [], "Columns, or fields of .json, to take; empty: the usual."
)
_LANGUAGES = flags.DEFINE_list("languages", [], "Codes to keep; empty: all.")
_MIME_TYPES = flags.DEFINE_list(
  "mime_types", [], "To keep; empty: of WIT the usual, else all that is read."
)
_MIN_SIZE = flags.DEFINE_integer("min_size", 1, "Pixels, shorter side.")
_MAX_ASPECT = flags.DEFINE_float("max_aspect", None, "Longer by shorter side.")
_MIN_CAPTION = flags.DEFINE_integer("min_caption", 1, "Characters.")
_MAX_CAPTION = flags.DEFINE_integer("max_caption", None, "Characters.")
_NUM_SHARDS = flags.DEFINE_integer(
  "num_shards", None, "Of wit; None: 64 a table. The others: as their files."
)
_TEST_SHARE = flags.DEFINE_float(
  "test_share", 0.0, "Of the images, chosen by a hash, for the split 'test'."
)
_PASSES = flags.DEFINE_integer(
  "passes", 1, "Over wit's tables: as many times less memory here."
)
_IMAGE_COLUMN = flags.DEFINE_string(
  "image_column", None, "Of parquet; None: found by its name."
)
_STORE = flags.DEFINE_string(
  "store", None, "Keeps fetched images here; None: only until all is done."
)
_MAX_MISSING = flags.DEFINE_float(
  "max_missing", 0.05, "Share of images that a failing network may cost."
)
_USER_AGENT = flags.DEFINE_string(
  "user_agent", None, "Of wit: who asks, with an address for complaints."
)
_JSON = flags.DEFINE_bool("json", False, "Print the counts as JSON.")
_TABLE = flags.DEFINE_string(
  "table", None, "Of boxes: CSV, TSV, .jsonl or .parquet, with images' names."
)
_BOX_FORMAT = flags.DEFINE_enum(
  "box_format",
  None,
  list(words.BOX_FORMATS),
  "Of its boxes: yxyx is in fractions; xyxy (corners) and xywh in pixels.",
)
_COLUMNS = flags.DEFINE_list(
  "columns", [], "Of it: IMAGE,BOX,TEXT,SCORE; empty: by their names."
)
_MIN_SCORE = flags.DEFINE_float("min_score", None, "Of boxes to take.")
_MAX_BOXES = flags.DEFINE_integer("max_boxes", None, "Of an image; the best.")
_MAX_BYTES = flags.DEFINE_integer("max_bytes", 50_000_000, "Of an image.")
_SHRINK_TO = flags.DEFINE_integer(
  "shrink_to", None, "Pixels, shorter side; None: images stay as they are."
)
_MAX_PIXELS = flags.DEFINE_integer("max_pixels", 89_478_485, "Of an image.")
_ALLOW = flags.DEFINE_list(
  "allow", [], "Private networks, as 10.1.0.0/16, that may be fetched from."
)
# Of fetching; the docstring of origins.Limits has more.
_FETCHING = {
  "requests_per_second": flags.DEFINE_float(
    "requests_per_second", 5.0, "To one server."
  ),
  "connections": flags.DEFINE_integer("connections", 2, "To one server."),
  "retries": flags.DEFINE_integer("retries", 4, "Of what may pass."),
  "backoff": flags.DEFINE_float("backoff", 1.0, "Seconds; then doubled."),
  "max_wait": flags.DEFINE_float("max_wait", 300.0, "Of Retry-After, seconds."),
  "timeout": flags.DEFINE_float("timeout", 20.0, "Seconds without a byte."),
  "max_seconds": flags.DEFINE_float("max_seconds", 120.0, "For one image."),
  "max_redirects": flags.DEFINE_integer("max_redirects", 5, "In a row."),
}


def parse(argv: list[str]) -> tuple[list[str], list[str]]:
  """Returns (the program's name and what is no flag, Beam's own flags)."""
  # Taken away first: absl would not tell Beam's flags from files.
  cut = argv.index("--") if "--" in argv else len(argv)
  return parse_arguments(argv[:cut]), argv[cut + 1 :]


def main(given: tuple[list[str], list[str]]) -> None:
  """Prepares what is missing and prints counts by kind."""
  argv, of_beam = given
  logging.set_verbosity(logging.ERROR)
  python_logging.getLogger().setLevel(python_logging.ERROR)
  # What long stages say, and flags that Beam does not know.
  for name in ("big_siglip", "apache_beam.options"):
    python_logging.getLogger(name).setLevel(python_logging.INFO)
  # Nothing is lost at any moment: there is nothing to wait for.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, _stop)
  kind = argv[1] if argv[1:] else ""
  with exit_on_error():
    _check_arguments(kind)
    if kind == "boxes":
      _add_boxes(argv[2:])
      return
    needed = extras.needed_by(f"big-siglip prepare {kind}", "prepare")
    with progress.loading(), needed:
      from big_siglip.preparation.folder import Folder

      folder = Folder(_make_job(kind, argv[2:]))
      from big_siglip.preparation import pipelines
    arguments = pipelines.check_arguments(of_beam)
    with folder.lock():
      folder.begin()
      if folder.is_finished:
        _say(f"{folder.path} is finished already")
        folder.clean()
      else:
        pipelines.run(folder, arguments, _say)
        folder.finish()
    _print_summary(folder)


def _stop(number: int, frame: types.FrameType | None) -> None:
  _say("stopped; the same command goes on from here")
  os._exit(128 + number)


def _check_arguments(kind: str) -> None:
  if kind not in _KINDS:
    allowed = ", ".join(_KINDS)
    raise UserError(f"command {kind!r}: must be one of {allowed}")
  if not _OUTPUT.value:
    raise UserError("--output=FOLDER must be given")


def _add_boxes(inputs: list[str]) -> None:
  """Adds boxes to a data set, and says how many."""
  if len(inputs) != 1:
    raise UserError(
      f"boxes needs one prepared data set, its folder; {len(inputs)} given"
    )
  formats = "|".join(words.BOX_FORMATS)
  for flag, what in ((_TABLE, "FILE"), (_BOX_FORMAT, formats)):
    if flag.value is None:
      raise UserError(f"--{flag.name}={what} must be given")
  if _MAX_BOXES.value is not None and _MAX_BOXES.value < 1:
    raise UserError(f"--max_boxes={_MAX_BOXES.value}: must be at least 1")
  with progress.loading(), extras.needed_by("big-siglip prepare boxes", "tfds"):
    from big_siglip.preparation import boxes
  counts = boxes.add(
    inputs[0],
    _TABLE.value,
    _OUTPUT.value,
    form=_BOX_FORMAT.value,
    columns=tuple(_COLUMNS.value),
    limits=boxes.Limits(_MIN_SCORE.value, _MAX_BOXES.value),
  )
  if _JSON.value:
    print(json.dumps(counts))
    return
  print(
    f"{_OUTPUT.value}: {counts['images']} images, {counts['images with boxes']}"
    f" with boxes, {counts['boxes']} boxes"
  )
  for kind, number in counts.items():
    if kind not in ("images", "images with boxes", "boxes") and number:
      print(f"  {number:>9} {kind}")


def _make_job(kind: str, inputs: list[str]):
  from big_siglip.preparation import filters, job, origins, records

  limits = None
  if kind == "wit" and _USER_AGENT.value:
    limits = origins.Limits(
      user_agent=_USER_AGENT.value,
      allow=tuple(_ALLOW.value),
      **{name: flag.value for name, flag in _FETCHING.items()},
    )
  return job.make_job(
    kind,
    inputs,
    _OUTPUT.value,
    filters.Filters(
      languages=tuple(_LANGUAGES.value),
      mime_types=tuple(_MIME_TYPES.value)
      or (filters.MIME_TYPES if kind.startswith("wit") else ()),
      min_size=_MIN_SIZE.value,
      max_aspect=_MAX_ASPECT.value,
      min_caption=_MIN_CAPTION.value,
      max_caption=_MAX_CAPTION.value,
    ),
    name=_NAME.value,
    captions=tuple(_CAPTIONS.value),
    num_shards=_NUM_SHARDS.value,
    test_share=_TEST_SHARE.value,
    passes=_PASSES.value,
    image_column=_IMAGE_COLUMN.value,
    store=_STORE.value,
    limits=limits,
    of_images=records.ImageLimits(
      max_bytes=_MAX_BYTES.value,
      max_pixels=_MAX_PIXELS.value,
      shrink_to=_SHRINK_TO.value,
    ),
    max_missing=_MAX_MISSING.value,
  )


def _say(line: str) -> None:
  progress.say(line)


def _print_summary(folder) -> None:
  counts = folder.read_summary()
  if _JSON.value:
    print(json.dumps(counts))
    return
  print(
    f"{folder.path}: {counts['examples']} examples, "
    f"{counts['captions']} captions"
  )
  for kind, number in counts.items():
    if kind not in ("examples", "captions"):
      print(f"  {number:>9} {kind}")
