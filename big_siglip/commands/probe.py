"""Teaches a classifier on a model's embeddings, and keeps it.

big-siglip probe --checkpoint=models/b16 --images=BIRDS --output=birds
big-siglip classify --checkpoint=models/b16 --classifier=birds photos/

BIRDS is a folder for each class, a table with labels, shards: whatever training
reads. The model stays as it is: a logistic regression on its embeddings of
images, unit vectors. Five times a fifth of each label's images is held out, so
that each image is judged by what it did not teach: that says how good the
classifier is, and which images it gets wrong (all of them: --rows=FILE.csv).
Then it learns from all. docs/labels.md tells more.
"""

import json

from absl import flags, logging

from big_siglip import progress
from big_siglip.commands import labelled, sight, tables
from big_siglip.errors import exit_on_error, UserError

flags.adopt_module_key_flags(sight)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's or model's folder, or published weights."
)
_IMAGES = flags.DEFINE_string(
  "images", None, "A folder, or another data set, with labels."
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
_OUTPUT = flags.DEFINE_string("output", None, "The folder to make.")
_ROWS = flags.DEFINE_string(
  "rows", None, "A table to write: what became of each image, held out."
)
_LIMIT = flags.DEFINE_integer(
  "limit", 20, "Wrong images to print.", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: list[str]) -> None:
  """Learns, writes, and prints how good it is."""
  logging.set_verbosity(logging.WARNING)
  with exit_on_error(), labelled.naming_flags():
    if argv[1:]:
      raise UserError(f"{argv[1]!r}: belongs to no flag")
    for flag in (_CHECKPOINT, _OUTPUT):
      if not flag.value:
        raise UserError(f"--{flag.name}={flag.name.upper()} must be given")
    labelled.check_data(_IMAGES.value, _DATA.value)
    output = labelled.check_new(_OUTPUT.value, "--output")
    if _ROWS.value is not None:
      tables.check(_ROWS.value, "--rows")
    with progress.loading():
      from big_siglip import platforms
      from big_siglip.trained import classifier

      platforms.prepare()
    model = sight.load(_CHECKPOINT.value)
    model.embedder("images")
    head, table = _learn(model)
    classifier.write(output, head)
    if _ROWS.value is not None:
      from etils import epath

      from big_siglip.evaluation import rows

      rows.write(epath.Path(_ROWS.value).expanduser(), table)
  wrong = [row for row, right in enumerate(table["right"]) if right is False]
  if _JSON.value:
    keys = ("key", "label", "predicted", "probability")
    print(
      json.dumps(
        {
          "output": str(output),
          **vars(head.description),
          "wrong": [{key: table[key][row] for key in keys} for row in wrong],
        }
      )
    )
    return
  measured = head.description.measured
  print(output)
  print(f"  {head}")
  print(f"  mean over labels {measured['per_class']:.1%}")
  print(f"  penalty {head.description.l2:g}")
  _print_wrong(table, wrong)


def _print_wrong(table, wrong: list[int]) -> None:
  """Prints the wrong images, those that the classifier was surest of first."""
  wrong = sorted(wrong, key=lambda row: -table["probability"][row])
  shown = wrong[: _LIMIT.value]
  if shown:
    print(f"  wrong, of the held-out images ({len(wrong):,}):")
  for row in shown:
    print(
      f"    {table['key'][row]}: {table['label'][row]}, taken for "
      f"{table['predicted'][row]} ({table['probability'][row]:.0%})"
    )
  if shown and len(shown) < len(wrong):
    print(f"    and {len(wrong) - len(shown):,} more (--rows=FILE.csv has all)")
  if _ROWS.value:
    print(_ROWS.value)


def _learn(model):
  """Returns the classifier, and a row for each image."""
  from big_siglip.labels import images, probing
  from big_siglip.trained import classifier

  wanted = images.Wanted(
    _IMAGES.value, _DATA.value, _SPLIT.value, _LABEL_KEY.value, _LABELS.value
  )
  with progress.waiting("opening the data"):
    source = images.open_source(model, wanted, "linear_probe")
  with progress.Progress(len(source), "images") as show:
    found = images.embed_labelled(
      model, wanted, source, show.add, "linear_probe"
    )
  for count, what in (
    (found.skipped, "cannot be read"),
    (found.unlabelled, "have no label"),
  ):
    if count:
      progress.say(f"{count} of {len(source)} images left out: they {what}")
  if alone := found.labels[probing.divide(found.labels) < 0].tolist():
    names = ", ".join(found.names[label][0] for label in alone[:5])
    progress.say(
      f"note: {len(alone)} labels have a single image, which teaches and "
      f"measures nothing: {names}{', ...' * (len(alone) > 5)}"
    )
  head, tested = probing.learn(
    found,
    str(wanted),
    _CHECKPOINT.value,
    classifier.describe_tower(model.params, model.config),
  )
  return head, probing.rows(found, tested)
