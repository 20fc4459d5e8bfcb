"""Scores images against labels of your choice.

big-siglip classify --checkpoint=models/so400m --labels="a cat,a dog" \
  photos/*.jpg
big-siglip classify --checkpoint=runs/digits --labels=labels.txt \
  --template="a photo of {}" --json photos/

Two numbers for each label. The sigmoid's is SigLIP's own: how likely the text
belongs to the image, each on its own, so that all may be low, or several high.
The softmax's says which label is likeliest if one of them must be right. A
model that was trained with a softmax has only the latter. Which files of labels
and which images are read says docs/formats.md.
"""

import itertools
import json
import pathlib
import sys
import warnings

from absl import flags, logging

from big_siglip.errors import exit_on_error, UserError

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's or model's folder, or published weights."
)
_LABELS = flags.DEFINE_string(
  "labels",
  None,
  "Labels, comma-separated, or a file: one a line, a table, or JSON.",
)
_TEMPLATE = flags.DEFINE_string(
  "template", "{}", "Sentence around a label, such as 'a photo of {}'."
)
_TOP = flags.DEFINE_integer("top", 5, "Labels to print for each image.")
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object for each image.")
_DATA = flags.DEFINE_string(
  "data", None, "The format of data sets, as config.data.name; or seen."
)
_SPLIT = flags.DEFINE_string("split", None, "Of data sets; all unless given.")
_COLUMN = flags.DEFINE_string("column", None, "Of tables and data sets.")
_NAMES = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".names"}
_BATCH = 64  # Images in memory at once.


def main(argv: list[str]) -> None:
  """Prints a table, or a line of JSON for each image."""
  logging.set_verbosity(logging.ERROR)
  # Of Pillow; what matters of an image is said in a line of ours.
  warnings.filterwarnings("ignore", module="PIL")
  # A file's name may be any bytes, and is printed.
  sys.stdout.reconfigure(errors="backslashreplace")
  with exit_on_error():
    if not _CHECKPOINT.value:
      raise UserError("--checkpoint=MODEL must be given")
    names = read_labels(_LABELS.value)
    if "{}" not in _TEMPLATE.value:
      raise UserError(f"--template={_TEMPLATE.value!r}: must hold {{}}")
    if _TOP.value < 1:
      raise UserError(f"--top={_TOP.value}: must be at least 1")
    inputs = find_images(argv[1:])
    import big_siglip
    from big_siglip import platforms

    platforms.prepare()
    model = big_siglip.load(_CHECKPOINT.value)
    texts = _embed_labels(model, names)
  if not model.has_trained_bias:
    print(f"note: {_CHECKPOINT.value}: {model.NO_SIGMOID}", file=sys.stderr)
  images = (
    (argument, one, index)
    for argument, one in inputs
    for index in range(len(one))
  )
  skipped = total = 0
  while batch := list(itertools.islice(images, _BATCH)):
    good, rows = _readable(model, batch)
    total += len(batch)
    skipped += len(batch) - len(good)
    logits = model.logit_scale * (rows @ texts.T) + model.logit_bias
    for shown, row in zip(good, logits, strict=True):
      _print_scores(shown, names, row, model.has_trained_bias)
  if skipped:
    print(f"{skipped} of {total} images skipped", file=sys.stderr)
  if skipped == total:
    sys.exit(1)


def read_labels(given: str | None) -> tuple[tuple[str, ...], ...]:
  """Returns the names of each label, in their order; of most there is one.

  Raises:
    UserError: none are given, or one is empty or stands twice.
  """
  if not given:
    raise UserError("--labels=A,B or --labels=FILE must be given")
  from big_siglip import shipped
  from big_siglip.data import class_files
  from big_siglip.data.class_names import ClassNames, distinct

  where = f"--labels={given if len(given) < 80 else given[:77] + '...'}"
  file = shipped.find(given)
  try:
    is_file = file.is_file()
  except (OSError, ValueError):  # Many labels are longer than a name may be.
    is_file = False
  if is_file:
    classes = class_files.read(given, where)
  elif given.lstrip().startswith(("[", "{")):
    classes = class_files.parse(given, where)
  elif "," not in given and file.suffix.lower() in _NAMES:
    raise UserError(f"{where}: no such file")
  elif given.endswith("/") and file.is_dir():
    raise UserError(f"{where}: is a folder, must be labels or a file of them")
  else:
    labels = [label.strip() for label in given.split(",")]
    if "" in labels:
      raise UserError(f"{where}: holds an empty label")
    classes = ClassNames(tuple((label,) for label in labels))
  names, several = distinct(classes, where)
  if several:
    print(
      f"note: {where}: {len(several)} labels have the names of others, and "
      f"count once: {', '.join(several[:5])}",
      file=sys.stderr,
    )
  return names


def find_images(arguments: list[str]) -> list[tuple]:
  """Returns (argument, `embeddings.AnyInputs`) of files, folders, data sets.

  A table or list is one if it stands alone: among others it is a file that
  lay beside them, and no image.

  Raises:
    UserError: nothing is named, or it does not exist, or a folder has none.
  """
  if not arguments:
    raise UserError("name at least one image or folder of images")
  from big_siglip import embeddings
  from big_siglip.embeddings import datasets, tables

  lists = (".txt", *tables.SUFFIXES)
  found = []
  for argument in arguments:
    path = pathlib.Path(argument)
    is_list = len(arguments) == 1 and path.suffix.lower() in lists
    if path.is_file() and not (
      is_list or _DATA.value or datasets.find_format(argument)
    ):
      inputs = embeddings.Inputs(pathlib.Path(), [argument])
      found.append((argument, inputs))
      continue
    if not (_DATA.value or path.exists() or datasets.find_format(argument)):
      raise UserError(f"{path}: no such file or folder")
    inputs = embeddings.read_images(
      argument, _COLUMN.value, _DATA.value, _SPLIT.value, "images"
    )
    found.append((argument, inputs))
  return found


def _embed_labels(model, names):
  """Returns a unit vector for each label, the mean of its names' vectors.

  Raises:
    UserError: the model gives no numbers for one.
  """
  import numpy as np

  prompts = [
    [_TEMPLATE.value.replace("{}", name) for name in own] for own in names
  ]
  texts = model.embed_classes(prompts)
  bad = np.flatnonzero(~np.isfinite(texts).all(axis=1))
  if len(bad):
    raise UserError(
      f"--labels: the embeddings of {len(bad)} of {len(names)} labels are not "
      f"finite, such as that of {names[bad[0]][0]!r}"
    )
  return texts


def _readable(model, batch):
  """Returns what can be embedded, as (shown name, ...), and embeddings NE."""
  import numpy as np

  shown, images = [], []
  for argument, inputs, index in batch:
    one = inputs.prepare(model, index)
    in_folder = not inputs.data and pathlib.Path(argument).is_dir()
    name = str(pathlib.Path(argument) / one.key) if in_folder else one.key
    if one.problem:
      print(f"skipped: {name}: {one.problem}", file=sys.stderr)
      continue
    shown.append(name)
    images.append(one.array)
  rows = model.embed_prepared(images)
  finite = np.isfinite(rows).all(axis=1)
  for name in itertools.compress(shown, ~finite):
    print(f"skipped: {name}: its embedding is not finite", file=sys.stderr)
  return list(itertools.compress(shown, finite)), rows[finite]


def _print_scores(shown: str, names, logits, has_sigmoid: bool) -> None:
  import numpy as np

  from big_siglip.trained.inference import sigmoid

  probabilities = sigmoid(logits)
  softmax = np.exp(logits - np.logaddexp.reduce(logits))
  order = np.argsort(-logits, kind="stable")[: _TOP.value]
  if _JSON.value:
    scores = {
      names[i][0]: {
        "probability": float(probabilities[i]) if has_sigmoid else None,
        "softmax": float(softmax[i]),
      }
      for i in order
    }
    print(json.dumps({"image": shown, "scores": scores}))
    return
  print(f"{shown}\n  {'sigmoid':>8} {'softmax':>8}")
  for i in order:
    first = f"{probabilities[i]:8.2%}" if has_sigmoid else f"{'-':>8}"
    print(f"  {first} {softmax[i]:8.2%}  {names[i][0]}")
