"""What commands on labelled images have in common."""

from collections.abc import Iterator
import contextlib
import pathlib
import re
import sys

from big_siglip.errors import UserError

# What messages of data sets and evaluations call fields -> the flags.
_FLAGS = {"path": "images", "classes_file": "labels", "name": "data"}
_FIELD = re.compile(r"config\.(?:evals\.images|evals|data)[.:] ?(\w+)(?==)")

# Files of labels, by their ends.
_NAMES = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".names"}


@contextlib.contextmanager
def naming_flags() -> Iterator[None]:
  """Calls the fields of a `UserError` by the flags that the user gave."""
  try:
    yield
  except UserError as error:
    message = _FIELD.sub(
      lambda found: f"--{_FLAGS.get(found[1], found[1])}", str(error)
    )
    message = message.replace("config.evals.images: ", "")
    raise UserError(message.replace("config.evals: ", "")) from error


def check_data(images: str | None, data: str | None) -> None:
  """Raises a `UserError` unless a data set is named."""
  if data is not None and pathlib.Path(data).expanduser().exists():
    raise UserError(
      f"--data={data}: is the format of a data set; --images={data} says "
      "where it lies"
    )
  if images is None and data is None:
    raise UserError("--images=FOLDER, or another data set, must be given")


def check_new(file: str, flag: str) -> pathlib.Path:
  """Returns the path of a file or folder that is to be made.

  Raises:
    UserError: it is there already, or its place is not.
  """
  path = pathlib.Path(file).expanduser()
  if path.exists():
    raise UserError(f"{flag}={file}: exists already; take another name")
  above = path.absolute().parent
  if not above.is_dir():
    raise UserError(f"{flag}={file}: there is no folder {above}")
  return path


def read_templates(given: list[str]) -> tuple[str, ...]:
  """Returns the sentences around a label: each that is given, or of a file.

  Args:
    given: sentences with "{}", or one file of them; none: the label alone.

  Raises:
    UserError: one has no "{}", or there is no such file.
  """
  from big_siglip.evaluators import prompts

  if not given:
    return ("{}",)
  with_names = {
    "config.evals: templates_file": "--template",
    "config.evals: templates": "--template",
  }
  file = given[0] if len(given) == 1 and "{}" not in given[0] else None
  is_file = file is not None and pathlib.Path(file).expanduser().is_file()
  try:
    return prompts.read_templates(
      () if is_file else tuple(given), file if is_file else None
    )
  except UserError as error:
    message = str(error)
    for theirs, ours in with_names.items():
      message = message.replace(theirs, ours)
    raise UserError(message) from error


def read_labels(given: str) -> tuple[tuple[str, ...], ...]:
  """Returns the names of each label, in their order; of most there is one.

  Raises:
    UserError: one is empty or stands twice.
  """
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


def find_images(
  arguments: list[str],
  data: str | None,
  split: str | None,
  column: str | None,
) -> list[tuple]:
  """Returns (argument, `embeddings.AnyInputs`) of files, folders, data sets.

  A table or list is one if it stands alone: among others it is a file that
  lay beside them, and no image.

  Args:
    arguments: what the user named.
    data: the format of data sets; None: seen.
    split: of data sets; None: all.
    column: of tables and data sets; None: found.

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
      is_list or data or datasets.find_format(argument)
    ):
      inputs = embeddings.Inputs(pathlib.Path(), [argument])
      found.append((argument, inputs))
      continue
    if not (data or path.exists() or datasets.find_format(argument)):
      raise UserError(f"{path}: no such file or folder")
    inputs = embeddings.read_images(argument, column, data, split, "images")
    found.append((argument, inputs))
  return found
