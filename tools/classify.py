"""Scores images against labels of your choice.

python tools/classify.py --checkpoint=models/so400m --labels="a cat,a dog" \
  photos/*.jpg
python tools/classify.py --checkpoint=runs/digits --labels=labels.txt \
  --template="a photo of {}" --json photos/

Two numbers for each label. The sigmoid's is SigLIP's own: how likely the text
belongs to the image, each on its own, so that all may be low, or several high.
The softmax's says which label is likeliest if one of them must be right.
"""

import json
import pathlib
import sys
import warnings

from absl import app, flags, logging

from big_siglip.command_line import parse_arguments
from big_siglip.errors import exit_on_error, UserError

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's or model's folder, or published weights."
)
_LABELS = flags.DEFINE_string(
  "labels", None, "Labels, comma-separated, or a file with one in each line."
)
_TEMPLATE = flags.DEFINE_string(
  "template", "{}", "Sentence around a label, such as 'a photo of {}'."
)
_TOP = flags.DEFINE_integer("top", 5, "Labels to print for each image.")
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object for each image.")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
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
    labels = read_labels(_LABELS.value)
    if "{}" not in _TEMPLATE.value:
      raise UserError(f"--template={_TEMPLATE.value!r}: must hold {{}}")
    if _TOP.value < 1:
      raise UserError(f"--top={_TOP.value}: must be at least 1")
    files = find_images(argv[1:])
    import big_siglip
    from big_siglip import platforms
    from big_siglip.trained.inference import sigmoid

    platforms.prepare()
    model = big_siglip.load(_CHECKPOINT.value)
    texts = model.embed_texts(
      [_TEMPLATE.value.replace("{}", x) for x in labels]
    )
  skipped = 0
  for start in range(0, len(files), _BATCH):
    good, images = _readable(model, files[start : start + _BATCH])
    skipped += len(files[start : start + _BATCH]) - len(good)
    cosines = model.embed_images(images) @ texts.T
    logits = model.logit_scale * cosines + model.logit_bias
    for file, row in zip(good, logits, strict=True):
      _print_scores(file, labels, row, sigmoid(row))
  if skipped:
    print(f"{skipped} of {len(files)} images skipped", file=sys.stderr)
  if skipped == len(files):
    sys.exit(1)


def read_labels(given: str | None) -> list[str]:
  """Returns the labels, in their order.

  Raises:
    UserError: none are given, or one is empty or stands twice.
  """
  if not given:
    raise UserError("--labels=A,B or --labels=FILE must be given")
  file = pathlib.Path(given).expanduser()
  try:
    is_file = file.is_file()
  except (OSError, ValueError):  # Many labels are longer than a name may be.
    is_file = False
  if is_file:
    try:
      lines = file.read_text("utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
      raise UserError(
        f"--labels={given}: must be UTF-8 text ({error})"
      ) from error
    labels = [line.strip() for line in lines if line.strip()]
  elif "," not in given and file.suffix in (".txt", ".csv"):
    raise UserError(f"--labels={given}: no such file")
  else:
    labels = [label.strip() for label in given.split(",")]
  if not labels or "" in labels:
    raise UserError(f"--labels={given[:80]!r}: holds an empty label")
  seen = set()
  for label in labels:
    if label in seen:
      raise UserError(f"--labels: {label!r} stands there twice")
    seen.add(label)
  return labels


def find_images(arguments: list[str]) -> list[pathlib.Path]:
  """Returns the files named, and those with an image's ending in folders.

  Raises:
    UserError: nothing is named, or it does not exist, or a folder has none.
  """
  if not arguments:
    raise UserError("name at least one image or folder of images")
  files = []
  for argument in arguments:
    path = pathlib.Path(argument)
    if path.is_dir():
      found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _SUFFIXES and file.is_file()
      )
      if not found:
        raise UserError(f"{path}: holds no images")
      files += found
    elif path.is_file():
      files.append(path)
    else:
      raise UserError(f"{path}: no such file or folder")
  return files


def _readable(model, files):
  """Returns the files that can be decoded and what the model sees of them."""
  from big_siglip.data.images import BadImage

  good, images = [], []
  for file in files:
    try:
      images.append(model.prepare_image(file))
      good.append(file)
    except (BadImage, OSError) as error:
      print(f"skipped: {file}: {error}", file=sys.stderr)
  return good, images


def _print_scores(file, labels, logits, probabilities) -> None:
  import numpy as np

  softmax = np.exp(logits - np.logaddexp.reduce(logits))
  order = np.argsort(-logits)[: _TOP.value]
  if _JSON.value:
    scores = {
      labels[i]: {
        "probability": float(probabilities[i]),
        "softmax": float(softmax[i]),
      }
      for i in order
    }
    print(json.dumps({"image": str(file), "scores": scores}))
    return
  print(f"{file}\n  {'sigmoid':>8} {'softmax':>8}")
  for i in order:
    print(f"  {probabilities[i]:8.2%} {softmax[i]:8.2%}  {labels[i]}")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_arguments)
