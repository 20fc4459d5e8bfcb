"""Draws what patches know: components, labels, matches, attention.

big-siglip dense pca --checkpoint=models/b16 --output=pca.png photos/*.jpg
big-siglip dense segment --checkpoint=models/b16 --labels="a dog,grass" \
  --output=dog.png dog.jpg
big-siglip dense match --checkpoint=models/b16 --output=match.png a.jpg b.jpg
big-siglip dense attention --checkpoint=models/b16 --output=seen.png dog.jpg
big-siglip dense sight --checkpoint=models/naflex --lengths=64,256,1024 dog.jpg

pca paints patches that are alike in like colours, over all images given.
segment asks each patch about each label, without training: a map for each, and
the likeliest one above --threshold. match joins patches of two images that are
each other's nearest. attention is where the pool looked, which is not why it
said what it said. sight is what a NaFlex model sees in so many patches. --size
shows more than the model was trained with, at once or in windows by --stride.
"""

import sys
import warnings

from absl import flags, logging

from big_siglip import progress
from big_siglip.commands import sight
from big_siglip.errors import exit_on_error, naming, UserError

flags.adopt_module_key_flags(sight)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's or model's folder, or published weights."
)
_OUTPUT = flags.DEFINE_string(
  "output", "dense.png", "The picture to write: .png, .webp or .jpg."
)
_LABELS = flags.DEFINE_string(
  "labels", None, "Of segment: labels, comma-separated, or a file."
)
_TEMPLATE = flags.DEFINE_multi_string(
  "template", [], "Of segment: sentence around a label; several, or a file."
)
_THRESHOLD = flags.DEFINE_float(
  "threshold", 0.5, "Of segment: the least probability of a label."
)
_KIND = flags.DEFINE_string(
  "kind", None, "Of patches: last, text, value or share; see docs/dense.md."
)
_LAYER = flags.DEFINE_integer(
  "layer", -1, "Whose tokens: -1 the last block's, -2 those before."
)
_MLP = flags.DEFINE_bool("pool_mlp", True, "Of segment: and its pool's MLP.")
_SIZE = flags.DEFINE_integer(
  "size", None, "Pixels that images are resized to; the model's unless given."
)
_STRIDE = flags.DEFINE_integer(
  "stride", None, "Pixels from window to window; none: the image at once."
)
_MATCHES = flags.DEFINE_integer(
  "matches", 40, "Of match: lines to draw, at most.", lower_bound=1
)
_LENGTHS = flags.DEFINE_list(
  "lengths", None, "Of sight: patches of an image; the model's unless given."
)
WAYS = ("pca", "segment", "match", "attention", "sight")
_SIDE = 320  # Pixels of an image on the sheet.
_SHOWN = 12  # Labels that have a map of their own.


def main(argv: list[str]) -> None:
  """Draws, and prints the file."""
  logging.set_verbosity(logging.ERROR)
  # Of Pillow; what matters of an image is said in a line of ours.
  warnings.filterwarnings("ignore", module="PIL")
  # A file's name may be any bytes, and is printed.
  sys.stdout.reconfigure(errors="backslashreplace")
  with exit_on_error():
    way, files = _check(argv[1:])
    labels, templates = _read_labels() if way == "segment" else ((), ())
    with progress.loading():
      from big_siglip import platforms
      from big_siglip.dense import figure

      platforms.prepare()
    photos = [_read(file) for file in files]
    model = sight.load(_CHECKPOINT.value)
    match way:
      case "pca":
        rows = _draw_components(model, files, photos)
      case "segment":
        rows = _draw_segments(model, files, photos, labels, templates)
      case "match":
        rows = _draw_matches(model, files, photos)
      case "sight":
        rows = _draw_sight(model, files, photos)
      case _:
        rows = _draw_attention(model, files, photos)
    figure.save(figure.sheet(rows), _OUTPUT.value)
  print(_OUTPUT.value)


def _check(arguments: list[str]) -> tuple[str, list[str]]:
  """Returns what to draw, and the images."""
  ways = " | ".join(WAYS)
  if not arguments or arguments[0] not in WAYS:
    given = f"{arguments[0]!r}: " if arguments else ""
    raise UserError(f"{given}must begin with one of {ways}")
  if not _CHECKPOINT.value:
    raise UserError("--checkpoint=MODEL must be given")
  way, *files = arguments
  if not files:
    raise UserError("name at least one image")
  if way == "match" and len(files) != 2:
    raise UserError(f"match: must have 2 images, not {len(files)}")
  if (way == "segment") != bool(_LABELS.value):
    raise UserError("--labels=A,B: goes with segment, and must be given there")
  if not 0 < _THRESHOLD.value < 1:
    raise UserError(f"--threshold={_THRESHOLD.value}: must lie in (0, 1)")
  if not _OUTPUT.value.lower().endswith((".png", ".webp", ".jpg", ".jpeg")):
    raise UserError(f"--output={_OUTPUT.value}: must be .png, .webp or .jpg")
  return way, files


def _read_labels():
  """Returns the first name of each label, and the templates."""
  from big_siglip.commands import labelled

  names = labelled.read_labels(_LABELS.value)
  return [own[0] for own in names], labelled.read_templates(_TEMPLATE.value)


def _read(file: str):
  """Returns an image, uint8 [H, W, 3]."""
  from big_siglip.data import images

  try:
    with open(file, "rb") as stream:
      return images.decode(stream.read())
  except OSError as error:
    raise UserError(f"{file}: {error.strerror}") from error
  except images.BadImage as error:
    raise UserError(f"{file}: {error}") from error


def _embed(model, photos, kind: str):
  """Returns the patches of each image, hwC."""
  return model.embed_patches(
    photos,
    kind=_KIND.value or kind,
    layer=_LAYER.value,
    size=_SIZE.value,
    stride=_STRIDE.value,
    progress=True,
  )


def _draw_sight(model, files, photos):
  import dataclasses

  import numpy as np

  from big_siglip.data import images, patches
  from big_siglip.dense.figure import Tile
  from big_siglip.trained import naflex

  made, values = model.preprocess, []
  for length in _LENGTHS.value or [model.config.model.image.max_patches]:
    with naming({"max_patches": "--lengths"}):
      number = int(length) if str(length).isdecimal() else length
      naflex.set_length(model.config.model, number, _CHECKPOINT.value)
    value = dataclasses.replace(made.value, max_patches=number)
    values.append(dataclasses.replace(made, value=value))
  rows = []
  for file, photo in zip(files, photos, strict=True):
    shown = _shown(photo)
    height, width = photo.shape[:2]
    row = [Tile(shown, f"{_name(file)}: {width} x {height}")]
    for made in values:
      seen = made.image(photo)
      tall, wide = grid = seen["grid"].tolist()
      pixels = patches.join(seen["patches"], grid, made.value.patch_size)
      pixels = images.resize(pixels, shown.shape[:2], "nearest")
      most = made.value.max_patches
      words = f"{tall} x {wide} of {most}: {tall * wide / most:.0%}"
      row.append(Tile(np.ascontiguousarray(pixels), words))
    rows.append(row)
  return rows


def _shown(photo):
  """Returns an image as it stands on the sheet."""
  from big_siglip.data import images

  height, width = photo.shape[:2]
  share = _SIDE / max(height, width)
  size = max(round(height * share), 1), max(round(width * share), 1)
  return images.resize(photo, size, "bicubic")


def _name(file: str) -> str:
  return file.replace("\\", "/").rpartition("/")[2]


def _draw_components(model, files, photos):
  from big_siglip.dense import pictures
  from big_siglip.dense.figure import Tile

  grids = list(_embed(model, photos, "last"))
  rows = []
  for file, photo, cells in zip(
    files, photos, pictures.components(grids), strict=True
  ):
    shown = _shown(photo)
    colours = pictures.enlarged(cells, *shown.shape[:2])
    words = f"{len(cells)} x {cells.shape[1]} patches"
    rows.append([Tile(shown, _name(file)), Tile(colours, words)])
  return rows


def _draw_segments(model, files, photos, labels, templates):
  import numpy as np

  from big_siglip.dense import pictures
  from big_siglip.dense.figure import Tile

  if not model.has_trained_bias:
    progress.say(f"note: {_CHECKPOINT.value}: {model.NO_SIGMOID}")
  found = model.segment(
    photos,
    labels,
    templates=templates,
    kind=_KIND.value,
    layer=_LAYER.value,
    pool_mlp=_MLP.value,
    size=_SIZE.value,
    stride=_STRIDE.value,
    progress=True,
  )
  rows = []
  for file, photo, probabilities in zip(files, photos, found, strict=True):
    shown = _shown(photo)
    small = pictures.enlarged(probabilities, *shown.shape[:2])
    best = pictures.labelled(small, _THRESHOLD.value)
    row = [
      Tile(shown, _name(file)),
      Tile(pictures.in_colours(shown, best), f"above {_THRESHOLD.value:g}"),
    ]
    for number, label in enumerate(labels[:_SHOWN]):
      own = small[..., number]
      colours = pictures.heat(own, 0.0, max(float(own.max()), 1e-6))
      colour = pictures.PALETTE[number % len(pictures.PALETTE)].tolist()
      words = f"{label}: up to {_percent(float(np.max(own)))}"
      row.append(Tile(pictures.over(shown, colours, 0.7), words, tuple(colour)))
    rows.append(row)
  return rows


def _percent(share: float) -> str:
  return f"{100 * share:.2g} %"


def _draw_matches(model, files, photos):
  from big_siglip.dense import figure, matching

  grids = _embed(model, photos, "last")
  first, second = map(_shown, photos)
  height = min(len(first), len(second))
  first, second = (_of_height(image, height) for image in (first, second))
  found = matching.mutual(grids[0], grids[1], _MATCHES.value)
  sides = tuple(cells.shape[:2] for cells in grids)
  tile = figure.matched(first, second, found, sides)
  names = " | ".join(map(_name, files))
  return [[tile._replace(words=f"{names}: {tile.words}")]]


def _of_height(image, height: int):
  from big_siglip.data import images

  width = max(round(image.shape[1] * height / len(image)), 1)
  return images.resize(image, (height, width), "bicubic")


def _draw_attention(model, files, photos):
  from big_siglip.dense import pictures
  from big_siglip.dense.figure import Tile

  weights = [
    cells.mean(axis=-1) for cells in _embed(model, photos, "attention")
  ]
  rows = []
  for file, photo, cells in zip(files, photos, weights, strict=True):
    shown = _shown(photo)
    colours = pictures.heat(cells, 0.0, float(cells.max()))
    colours = pictures.enlarged(colours, *shown.shape[:2])
    most = f"up to {_percent(float(cells.max()))} of the weight on a patch"
    rows.append(
      [
        Tile(shown, _name(file)),
        Tile(pictures.over(shown, colours, 0.7), most),
      ]
    )
  return rows
