"""Writes captions of images, boxes of phrases, and phrases of boxes.

big-siglip caption --checkpoint=runs/photos photos/*.jpg
big-siglip caption --checkpoint=runs/photos --phrase="the dog" \
  --phrase="a red ball" dog.jpg
big-siglip caption --checkpoint=runs/photos --box=0.1,0.2,0.5,0.9 --json dog.jpg
big-siglip caption --checkpoint=runs/photos --labels="a cat,a dog" photos/

For runs that were trained with a term of kind "captioning" in config.terms
(docs/captioning.md). --phrase asks where something is, and --box what is there:
a box is y1,x1,y2,x2 from the top left, in shares of the image, in the answer
too. --labels asks how likely each text is as a caption, and sorts them. The
first number of a line is the logarithm of the probability of what was written,
or of the label.
"""

import sys
import warnings

from absl import flags, logging

from big_siglip import progress
from big_siglip.commands import labelled, sight
from big_siglip.errors import exit_on_error, UserError

flags.adopt_module_key_flags(sight)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's folder, or RUN/checkpoints/STEP."
)
_PHRASE = flags.DEFINE_multi_string(
  "phrase", [], "Where is it? Several may be."
)
_BOX = flags.DEFINE_multi_string(
  "box", [], "What is there? y1,x1,y2,x2 in shares of the image; several."
)
_LABELS = flags.DEFINE_string(
  "labels", None, "Captions to score, comma-separated, or a file of them."
)
_PREFIX = flags.DEFINE_string("prefix", None, "How a caption begins.")
_BEAMS = flags.DEFINE_integer(
  "beams",
  1,
  "Sequences that the search keeps; 1: the likeliest word each time.",
)
_MAX_LENGTH = flags.DEFINE_integer(
  "max_length", None, "Tokens to write at most; as in training unless given."
)
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "json", "csv"], "What to print."
)
_JSON = flags.DEFINE_bool("json", False, "The same as --format=json.")
_DATA = flags.DEFINE_string(
  "data", None, "The format of data sets, as config.data.name; or seen."
)
_SPLIT = flags.DEFINE_string("split", None, "Of data sets; all unless given.")
_COLUMN = flags.DEFINE_string("column", None, "Of tables and data sets.")


def main(argv: list[str]) -> None:
  """Prints a table, or lines of JSON or CSV."""
  logging.set_verbosity(logging.ERROR)
  # Of Pillow; what matters of an image is said in a line of ours.
  warnings.filterwarnings("ignore", module="PIL")
  # A file's name may be any bytes, and is printed.
  sys.stdout.reconfigure(errors="backslashreplace")
  with exit_on_error():
    kind, boxes = _check_flags()
    with progress.loading():
      names = labelled.read_labels(_LABELS.value) if _LABELS.value else ()
      inputs = labelled.find_images(
        argv[1:], _DATA.value, _SPLIT.value, _COLUMN.value
      )
      from big_siglip import platforms
      from big_siglip.labels import captions
      from big_siglip.labels.classifying import Counts
      from big_siglip.trained.writing import Search

      platforms.prepare()
    search = Search(_BEAMS.value, _MAX_LENGTH.value)
    model = sight.load(_CHECKPOINT.value)
    labels = [own[0] for own in names]
    asked = captions.Asked(_PREFIX.value, _PHRASE.value, boxes, labels, search)
    counts = Counts()
    found = captions.answers(model, inputs, asked, counts)
    for line in captions.lines(kind, found):
      with progress.aside():
        print(line, flush=True)
  if counts.skipped:
    progress.say(f"{counts.skipped} of {counts.total} images skipped")
  if counts.skipped == counts.total:
    sys.exit(1)


def _check_flags() -> tuple[str, list[tuple[float, float, float, float]]]:
  """Returns the format that is asked for, and the boxes."""
  if not _CHECKPOINT.value:
    raise UserError("--checkpoint=RUN must be given")
  for name, least in (("beams", 1), ("max_length", 1)):
    value = flags.FLAGS[name].value
    if value is not None and value < least:
      raise UserError(f"--{name}={value}: must be at least {least}")
  if not all(phrase.strip() for phrase in _PHRASE.value):
    raise UserError("--phrase='': must say what to look for")
  others = _PHRASE.value or _BOX.value or _LABELS.value
  if _PREFIX.value is not None and others:
    raise UserError(
      "--prefix: is of captions, and goes without --phrase, --box and --labels"
    )
  kinds = {
    *(["json"] if _JSON.value else []),
    *([_FORMAT.value] if flags.FLAGS["format"].present else []),
  }
  if len(kinds) > 1:
    raise UserError("--format and --json: give one of them")
  return kinds.pop() if kinds else "table", [_box(one) for one in _BOX.value]


def _box(given: str) -> tuple[float, float, float, float]:
  try:
    y1, x1, y2, x2 = map(float, given.split(","))
    if 0 <= y1 < y2 <= 1 and 0 <= x1 < x2 <= 1:
      return y1, x1, y2, x2
  except ValueError:
    pass
  raise UserError(
    f"--box={given}: must be y1,x1,y2,x2 in shares of the image, with "
    "0 <= y1 < y2 <= 1, and x alike"
  )
