"""Finds near-duplicates in a library of images: pairs and groups of them.

big-siglip neighbours --embeddings=vectors --threshold=0.95
big-siglip neighbours --checkpoint=models/b16 --images=PHOTOS \
  --output=pairs.csv --page=duplicates.html

Every embedding is compared with every other one, exactly, block by block: the
table of all cosines exists at no time. A pair is near if its cosine is the
threshold or above; pairs that share an image are one group. --output writes the
pairs (key, other, similarity, group), --page the groups with small images, the
largest first. What is usual for the nearest other image is printed, too: the
right threshold lies above it, and depends on the model (docs/labels.md).
"""

import json
import os
import warnings

from absl import flags, logging

from big_siglip import extras, progress
from big_siglip.commands import sight, tables
from big_siglip.errors import exit_on_error, UserError

flags.adopt_module_key_flags(sight)
_EMBEDDINGS = flags.DEFINE_string(
  "embeddings", None, "A folder of big-siglip embed, of images or texts."
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Or a model, to embed --images first."
)
_IMAGES = flags.DEFINE_string(
  "images", None, "A folder, with all below it; a list; shards of a data set."
)
_COLUMN = flags.DEFINE_string(
  "column", None, "Of a table or data set; found by its name unless given."
)
_DATA = flags.DEFINE_string(
  "data", None, "The format of a data set, as config.data.name; or seen."
)
_SPLIT = flags.DEFINE_string("split", None, "Of a data set; all unless given.")
_THRESHOLD = flags.DEFINE_float(
  "threshold", 0.95, "The least cosine of a pair, above 0 and at most 1."
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "A table of all pairs to write: .csv, .parquet or .jsonl."
)
_PAGE = flags.DEFINE_string("page", None, "An HTML page of groups to write.")
_LIMIT = flags.DEFINE_integer("limit", 20, "Groups to print.", lower_bound=0)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object, all groups.")
_NAMES = 4  # Of a group that are printed.
_SKIPPED = 10  # That are named.


def main(argv: list[str]) -> None:
  """Compares, writes, and prints the groups."""
  logging.set_verbosity(logging.ERROR)
  # Of Pillow; what cannot be read is said in a line of ours.
  warnings.filterwarnings("ignore", module="PIL")
  with exit_on_error():
    _check_flags(argv[1:])
    with extras.needed_by("big-siglip neighbours"):
      from big_siglip.embeddings import neighbours
    library = _open()
    bad = neighbours.normalize(library.rows)
    pairs = neighbours.find_pairs(library.rows, _THRESHOLD.value)
    groups = neighbours.find_groups(pairs)
    files = _write(library, pairs, groups)
  skipped = len(library.skipped)
  if _JSON.value:
    print(json.dumps(_as_json(library, pairs, groups, skipped + bad)))
    return
  _print(library, pairs, groups)
  for key, reason in library.skipped[:_SKIPPED]:
    progress.say(f"skipped: {key}: {reason}")
  if skipped + bad:
    progress.say(f"{skipped + bad} were left out")
  for file in files:
    print(file)


def _check_flags(arguments: list[str]) -> None:
  if arguments:
    raise UserError(f"{arguments[0]!r}: belongs to no flag")
  if bool(_EMBEDDINGS.value) == bool(_IMAGES.value):
    raise UserError("either --embeddings=DIR or --images=FOLDER must be given")
  if _IMAGES.value and not _CHECKPOINT.value:
    raise UserError("--images: --checkpoint=MODEL, which embeds them, too")
  if _EMBEDDINGS.value:
    for flag in (_CHECKPOINT, _COLUMN, _DATA, _SPLIT):
      if flag.value:
        raise UserError(f"--{flag.name}: goes with --images")
  if not 0 < _THRESHOLD.value <= 1:
    raise UserError(
      f"--threshold={_THRESHOLD.value:g}: must be above 0 and at most 1"
    )
  if _OUTPUT.value is not None:
    tables.check(_OUTPUT.value, "--output")
  if _PAGE.value is not None and not _PAGE.value.endswith((".html", ".htm")):
    raise UserError(f"--page={_PAGE.value}: must end in .html")


def _open():
  """Returns what is to be compared."""
  from big_siglip import platforms
  from big_siglip.embeddings import library

  if _PAGE.value:
    with extras.needed_by("--page"):  # Before what takes minutes.
      from big_siglip.report import duplicates  # noqa: F401
  if _EMBEDDINGS.value:
    platforms.prepare()
    return library.of_folder(_EMBEDDINGS.value)
  from big_siglip import embeddings

  inputs = embeddings.read_images(
    _IMAGES.value, _COLUMN.value, _DATA.value, _SPLIT.value
  )
  platforms.prepare()
  model = sight.load(_CHECKPOINT.value)
  return library.of_images(model, inputs, os.cpu_count() or 1)


def _write(library, pairs, groups) -> list:
  """Writes the table and the page, if they are wanted; returns their paths."""
  files = []
  if _OUTPUT.value is not None:
    from etils import epath

    from big_siglip.embeddings import neighbours
    from big_siglip.evaluation import rows

    files.append(epath.Path(_OUTPUT.value).expanduser())
    keys = library.keys
    rows.write(
      files[-1],
      {
        "key": [keys[i] for i in pairs.first.tolist()],
        "other": [keys[i] for i in pairs.second.tolist()],
        "similarity": [round(c, 6) for c in pairs.cosine.tolist()],
        "group": neighbours.numbers_of(groups, len(pairs.first)).tolist(),
      },
    )
  if _PAGE.value is not None:
    from big_siglip.report import duplicates

    place = (_EMBEDDINGS.value or _IMAGES.value).rstrip("/")
    files.append(
      duplicates.write_page(
        *(_PAGE.value, library, pairs, groups, _THRESHOLD.value, place)
      )
    )
  return files


def _print(library, pairs, groups) -> None:
  from big_siglip.report import duplicates

  members = sum(len(group.rows) for group in groups)
  near = duplicates.quantiles(pairs)
  print(
    f"{len(library.keys):,} compared: {len(pairs.first):,} pairs at "
    f"{_THRESHOLD.value:g} or above, {members:,} in {len(groups):,} groups; "
    f"{len(library.keys) - members + len(groups):,} are left if one of each "
    "group stays"
  )
  if near:
    usual = ", ".join(f"{100 * q:g} %: {c:.4f}" for q, c in near.items())
    print(f"the nearest other one has at most this cosine, of {usual}")
  for number, group in enumerate(groups[: _LIMIT.value], 1):
    cosines = pairs.cosine[group.pairs]
    print(
      f"\n{number:4}  {len(group.rows):,} alike, cosine {cosines.max():.4f}"
      + (f" down to {cosines.min():.4f}" if len(cosines) > 1 else "")
    )
    for row in group.rows[:_NAMES].tolist():
      print(f"      {library.keys[row]}")
    if len(group.rows) > _NAMES:
      print(f"      and {len(group.rows) - _NAMES:,} more")
  if len(groups) > _LIMIT.value:
    print(f"\n  and {len(groups) - _LIMIT.value:,} more groups")


def _as_json(library, pairs, groups, skipped: int) -> dict:
  from big_siglip.report import duplicates

  keys = library.keys
  return {
    "count": len(keys),
    "skipped": skipped,
    "threshold": _THRESHOLD.value,
    "nearest": {str(q): c for q, c in duplicates.quantiles(pairs).items()},
    "groups": [
      {
        "keys": [keys[row] for row in group.rows.tolist()],
        "pairs": [
          {
            "key": keys[pairs.first[i]],
            "other": keys[pairs.second[i]],
            "similarity": round(float(pairs.cosine[i]), 6),
          }
          for i in group.pairs.tolist()
        ],
      }
      for group in groups
    ],
  }
