"""What commands on labelled images have in common."""

from collections.abc import Iterator
import contextlib
import pathlib
import re

from big_siglip.errors import UserError

# What messages of data sets and evaluations call fields -> the flags.
_FLAGS = {"path": "images", "classes_file": "labels", "name": "data"}
_FIELD = re.compile(r"config\.(?:evals\.images|evals|data)[.:] ?(\w+)(?==)")


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
