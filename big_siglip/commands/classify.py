"""Scores images against labels of your choice, or by a classifier of yours.

big-siglip classify --checkpoint=models/so400m --labels="a cat,a dog" \
  photos/*.jpg
big-siglip classify --checkpoint=runs/digits --labels=labels.txt \
  --template="a photo of {}" --json photos/
big-siglip classify --checkpoint=models/b16 --labels=tags.txt \
  --threshold=0.3 --csv=tags.csv photos/
big-siglip classify --checkpoint=models/b16 --classifier=birds photos/

Two numbers for each label. The sigmoid's is SigLIP's own: how likely the text
belongs to the image, each on its own, so that all may be low, or several high.
The softmax's says which label is likeliest if one of them must be right. A
model that was trained with a softmax has only the latter, and so has a
classifier (big-siglip probe). --threshold tells all labels that are as likely.
Scale and bias are those that big-siglip calibrate left, if it did. Which files
of labels and which images are read says docs/formats.md, and docs/labels.md how
to tag, calibrate and teach.
"""

import sys
import warnings

from absl import flags, logging

from big_siglip import progress
from big_siglip.commands import labelled, sight
from big_siglip.errors import exit_on_error, UserError

flags.adopt_module_key_flags(sight)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's or model's folder, or published weights."
)
_LABELS = flags.DEFINE_string(
  "labels",
  None,
  "Labels, comma-separated, or a file: one a line, a table, or JSON.",
)
_CLASSIFIER = flags.DEFINE_string(
  "classifier", None, "In place of labels, a folder of big-siglip probe."
)
_TEMPLATE = flags.DEFINE_multi_string(
  "template",
  [],
  "Sentence around a label, such as 'a photo of {}'; several, or a file.",
)
_CALIBRATION = flags.DEFINE_string(
  "calibration",
  "kept",
  "none: the trained scale and bias; or a file of big-siglip calibrate.",
)
_TOP = flags.DEFINE_integer("top", 5, "Labels to tell of each image.")
_THRESHOLD = flags.DEFINE_float(
  "threshold", None, "Tell all labels of at least this probability."
)
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "json", "csv"], "What to print."
)
_JSON = flags.DEFINE_bool("json", False, "The same as --format=json.")
_CSV = flags.DEFINE_string("csv", None, "A CSV file to write instead.")
_DATA = flags.DEFINE_string(
  "data", None, "The format of data sets, as config.data.name; or seen."
)
_SPLIT = flags.DEFINE_string("split", None, "Of data sets; all unless given.")
_COLUMN = flags.DEFINE_string("column", None, "Of tables and data sets.")


def main(argv: list[str]) -> None:
  """Prints a table, or a line of JSON or CSV for each image."""
  logging.set_verbosity(logging.ERROR)
  # Of Pillow; what matters of an image is said in a line of ours.
  warnings.filterwarnings("ignore", module="PIL")
  # A file's name may be any bytes, and is printed.
  sys.stdout.reconfigure(errors="backslashreplace")
  with exit_on_error():
    kind = _check_flags()
    with progress.loading():
      names = labelled.read_labels(_LABELS.value) if _LABELS.value else ()
      templates = labelled.read_templates(_TEMPLATE.value)
      inputs = labelled.find_images(
        argv[1:], _DATA.value, _SPLIT.value, _COLUMN.value
      )
      from big_siglip import platforms

      platforms.prepare()
    model = sight.load(_CHECKPOINT.value, calibration=_CALIBRATION.value)
    asked, logits = _ask(model, kind, names, templates)
    from big_siglip.labels.classifying import Counts, scored

    counts = Counts()
    _write(kind, asked, scored(model, inputs, logits, counts))
  skipped, total = counts.skipped, counts.total
  if skipped:
    progress.say(f"{skipped} of {total} images skipped")
  if _CSV.value:
    print(f"{_CSV.value}: {total - skipped} images")
  if skipped == total:
    sys.exit(1)


def _check_flags() -> str:
  """Returns the format that is asked for."""
  if not _CHECKPOINT.value:
    raise UserError("--checkpoint=MODEL must be given")
  if not (_LABELS.value or _CLASSIFIER.value):
    raise UserError("--labels=A,B or --labels=FILE must be given")
  if _TOP.value < 1:
    raise UserError(f"--top={_TOP.value}: must be at least 1")
  threshold = _THRESHOLD.value
  if threshold is not None and not 0 <= threshold <= 1:
    raise UserError(f"--threshold={threshold}: must lie in [0, 1]")
  if _CLASSIFIER.value and (_LABELS.value or _TEMPLATE.value):
    raise UserError(
      "--classifier: has its own labels; --labels and --template are for the "
      "model's text tower"
    )
  kinds = {
    *(["json"] if _JSON.value else []),
    *(["csv"] if _CSV.value else []),
    *([_FORMAT.value] if flags.FLAGS["format"].present else []),
  }
  if len(kinds) > 1:
    raise UserError("--format, --json and --csv=FILE: give one of them")
  if _CSV.value:
    labelled.check_new(_CSV.value, "--csv")
  return kinds.pop() if kinds else "table"


def _ask(model, kind, names, templates):
  """Returns what is asked, and the function from embeddings to logits.

  Raises:
    UserError: the model cannot answer it.
  """
  from big_siglip.labels import scores
  from big_siglip.labels.classifying import embed_labels

  threshold = _THRESHOLD.value
  top = _TOP.value
  if threshold is not None and not flags.FLAGS["top"].present:
    top = None
  if _CLASSIFIER.value:
    head = model.classifier(_CLASSIFIER.value).head
    progress.say(f"note: {head}")
    scores.check(kind, head.labels, threshold)
    return scores.Asked(head.labels, False, top, threshold), head.logits
  model.embedder("texts")
  _say_which_calibration(model, templates)
  if not model.has_trained_bias:
    said = f"{_CHECKPOINT.value}: {model.NO_SIGMOID}"
    if threshold is not None:
      raise UserError(
        f"--threshold={threshold}: {said}; big-siglip calibrate fits one"
      )
    progress.say(f"note: {said}")
  labels = [own[0] for own in names]
  scores.check(kind, labels, threshold)
  asked = scores.Asked(labels, model.has_trained_bias, top, threshold)
  texts = embed_labels(model, names, templates)
  return (
    asked,
    lambda rows: model.logit_scale * (rows @ texts.T) + model.logit_bias,
  )


def _say_which_calibration(model, templates) -> None:
  from big_siglip.trained import calibrated

  found = model.calibration
  file = calibrated.file_of(_CHECKPOINT.value)
  if found is not None:
    progress.say(f"note: {found}")
    if found.templates and tuple(found.templates) != templates:
      shown = ", ".join(map(repr, found.templates[:2]))
      progress.say(f"note: it was calibrated with other templates ({shown})")
  elif _CALIBRATION.value == "kept" and file is not None and file.exists():
    progress.say(
      f"note: {file} is of other parameters than {_CHECKPOINT.value}, and is "
      "not used"
    )


def _write(kind, asked, scored) -> None:
  from big_siglip.labels import scores

  if not _CSV.value:
    for line in scores.lines(kind, asked, scored):
      with progress.aside():
        print(line, flush=True)
    return
  try:
    with open(
      _CSV.value, "x", encoding="utf-8", errors="backslashreplace", newline=""
    ) as file:
      for line in scores.lines(kind, asked, scored):
        file.write(f"{line}\n")
  except OSError as error:
    raise UserError(f"--csv={_CSV.value}: {error.strerror}") from error
