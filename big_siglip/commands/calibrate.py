"""Fits scale and bias of the logits to your images, and keeps them.

big-siglip calibrate --checkpoint=models/b16 --images=PHOTOS \
  --template="a photo of {}"
big-siglip calibrate --checkpoint=runs/digits --data=digits --split=test

A sigmoid's probabilities are those of the batches that it was trained on, where
one pair in thousands is right. Fitted to labelled images (a folder for each
class, a table, shards: whatever training reads), each with each label, or to
images with captions, they are those of your data. The weights stay as they are:
calibration.json beside them is what big-siglip classify, the page and
big_siglip.load use from then on. The labels' templates are those that you will
classify with. docs/labels.md tells more.
"""

import json

from absl import flags, logging

from big_siglip import progress
from big_siglip.commands import labelled, sight
from big_siglip.errors import exit_on_error, UserError

flags.adopt_module_key_flags(sight)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's or model's folder, or published weights."
)
_IMAGES = flags.DEFINE_string(
  "images", None, "A folder, or another data set, with labels or captions."
)
_DATA = flags.DEFINE_string(
  "data", None, "The format of a data set, as config.data.name; or seen."
)
_SPLIT = flags.DEFINE_string("split", "all", "Of the data set.")
_LABEL_KEY = flags.DEFINE_string(
  "label_key", None, "The field that holds the label; found unless given."
)
_LABELS = flags.DEFINE_string(
  "labels", None, "A file that names the labels; the data's own unless given."
)
_TEMPLATE = flags.DEFINE_multi_string(
  "template", [], "Sentence around a label, such as 'a photo of {}'; several."
)
_AGAINST = flags.DEFINE_enum(
  "against",
  None,
  ["labels", "captions"],
  "What to ask the images; labels if there are some.",
)
_PRIOR = flags.DEFINE_float(
  "prior", None, "The share of right pairs to fit for; that of the data."
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Another place than beside the weights."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: list[str]) -> None:
  """Fits, writes, and prints before and after."""
  logging.set_verbosity(logging.WARNING)
  with exit_on_error(), labelled.naming_flags():
    _check_flags(argv[1:])
    with progress.loading():
      from etils import epath

      from big_siglip import platforms
      from big_siglip.trained import calibrated

      platforms.prepare()
    model = sight.load(_CHECKPOINT.value, calibration="none")
    model.embedder("texts")
    model.embedder("images")
    file = calibrated.file_of(_CHECKPOINT.value)
    if _OUTPUT.value:
      file = epath.Path(_OUTPUT.value).expanduser()
    if file is None:
      raise UserError(
        f"--checkpoint={_CHECKPOINT.value}: is of the hub; import it "
        "(big-siglip import), or name --output=FILE"
      )
    found = _calibrate(model)
    calibrated.write(file, found)
  if _JSON.value:
    print(json.dumps({"output": str(file), **vars(found)}))
    return
  print(file)
  print(f"  {found}")
  print(f"  right pairs: {found.prior:.3%} of all")
  print(f"  {'':10} {'trained':>10} {'calibrated':>10}")
  for name, words in (("ece", "ECE"), ("brier", "Brier"), ("log_loss", "loss")):
    numbers = [found.measured[key][name] for key in ("trained", "calibrated")]
    print(f"  {words:10} {numbers[0]:10.4f} {numbers[1]:10.4f}")
  print("  measured on images that the fit had not seen, half by half")


def _check_flags(arguments: list[str]) -> None:
  if arguments:
    raise UserError(f"{arguments[0]!r}: belongs to no flag")
  if not _CHECKPOINT.value:
    raise UserError("--checkpoint=MODEL must be given")
  labelled.check_data(_IMAGES.value, _DATA.value)
  if _PRIOR.value is not None and not 0 < _PRIOR.value < 1:
    raise UserError(f"--prior={_PRIOR.value}: must lie between 0 and 1")
  if _AGAINST.value == "captions" and (_TEMPLATE.value or _LABELS.value):
    raise UserError("--template and --labels: are of --against=labels")
  labelled.read_templates(_TEMPLATE.value)


def _calibrate(model):
  from big_siglip.labels import calibrating, images

  wanted = images.Wanted(
    _IMAGES.value, _DATA.value, _SPLIT.value, _LABEL_KEY.value, _LABELS.value
  )
  against = _AGAINST.value
  source = None
  if against != "captions":
    source = images.open_source(model, wanted, "classification")
    if against is None and not images.has_labels(source):
      against = "captions"
  if against == "captions":
    source = images.open_source(model, wanted, "calibration")
  with progress.Progress(len(source), "images") as show:
    if against == "captions":
      templates = ()
      seen = calibrating.see_captions(model, wanted, source, show.add)
    else:
      templates = labelled.read_templates(_TEMPLATE.value)
      seen = calibrating.see_labels(model, wanted, source, templates, show.add)
  if seen.skipped:
    progress.say(f"{seen.skipped} of {len(source)} images skipped")
  with progress.waiting("fitting scale and bias"):
    return calibrating.calibrate(
      model, seen, str(wanted), templates, _PRIOR.value
    )
