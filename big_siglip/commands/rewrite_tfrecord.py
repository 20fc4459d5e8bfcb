"""Rewrites a prepared TFDS data set from TFRecord to ArrayRecord.

big-siglip rewrite_tfrecord --input=~/tensorflow_datasets/coco/2017/1.1.0 \
  --output=DATA/coco/1.1.0

TFRecord can only be read from its start; config.data.name=tfds reads
ArrayRecord, by number. Features, splits and order stay, TensorFlow is not
needed, and damaged records are left out and counted. The input may be remote.
"""

import json

from absl import flags, logging

from big_siglip import extras, progress
from big_siglip.errors import exit_on_error, UserError

_INPUT = flags.DEFINE_string("input", None, "Folder with dataset_info.json.")
_OUTPUT = flags.DEFINE_string("output", None, "A new folder.")
_JSON = flags.DEFINE_bool("json", False, "Print the counts as JSON.")


def main(argv: list[str]) -> None:
  """Rewrites, and says how much."""
  logging.set_verbosity(logging.WARNING)
  with exit_on_error():
    if argv[1:]:
      raise UserError(f"unexpected argument {argv[1]!r} (flags start with --)")
    for name, value in (("input", _INPUT.value), ("output", _OUTPUT.value)):
      if not value:
        raise UserError(f"--{name}=FOLDER must be given")
    with progress.loading(), extras.needed_by("big-siglip rewrite_tfrecord"):
      from big_siglip.preparation import tfrecord

    counts = tfrecord.rewrite(_INPUT.value, _OUTPUT.value)
  if _JSON.value:
    print(json.dumps(counts))
  else:
    print(
      f"{counts['records']} records in {counts['shards']} shards written to"
      f" {_OUTPUT.value}; {counts['damaged']} damaged ones left out"
    )
