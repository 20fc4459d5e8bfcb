"""Finds what TFDS has prepared, in a local folder or a remote one."""

import os

import tensorflow_datasets as tfds

from big_siglip.data.sources.example import Options
from big_siglip.data.sources.prepared import PreparedRecords
from big_siglip.data.sources.remote_folder import copied, names_in
from big_siglip.data.sources.storage import is_remote, local_path, Storage
from big_siglip.errors import BadExample, UserError

_INFO = ("dataset_info.json", "features.json")


def open_prepared(
  name: str, split: str, path: str | None, options: Options
) -> PreparedRecords:
  """Opens a data set that lies prepared somewhere.

  Args:
    name: "tfds", or "tfds:NAME[/CONFIG][:VERSION]".
    split: of the data set.
    path: the folder with dataset_info.json for the former; for the latter what
      TFDS calls data_dir (None: its default).
    options: which features to take.

  Raises:
    UserError: nothing is prepared there, or see `PreparedRecords`.
  """
  _, _, wanted = name.partition(":")
  storage = Storage(options.retry_seconds)
  if wanted:
    folder = _find_version(wanted, path, storage)
  elif path:
    folder = path
  else:
    raise UserError(
      "config.data.path=None: must be the folder of the prepared data set,"
      " with its dataset_info.json"
    )
  builder, remote = find_builder(folder, storage)
  return PreparedRecords(builder, split, options, remote)


def find_builder(
  folder: str, storage: Storage
) -> tuple[tfds.core.DatasetBuilder, str | None]:
  """Returns the builder of a prepared data set, and the folder if it is remote.

  Raises:
    UserError: nothing is prepared there.
  """
  try:
    present = [storage.exists(os.path.join(folder, name)) for name in _INFO]
    if not all(present):
      raise UserError(
        f"config.data.path={folder!r}: no prepared TFDS data set lies there"
        f" ({' and '.join(_INFO)})"
      )
    local = copied(folder, storage, _INFO[0], (".json", ".txt"))
  except BadExample as error:
    raise UserError(f"config.data.path={folder!r}: {error}") from error
  try:
    builder = tfds.builder_from_directory(local)
  except Exception as error:  # Whatever a damaged description leads to.
    reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    raise UserError(f"config.data.path={folder!r}: {reason}") from error
  return builder, folder if is_remote(folder) else None


def _find_version(wanted: str, data_dir: str | None, storage: Storage) -> str:
  name, _, version = wanted.partition(":")
  root = (
    data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
  )
  if is_remote(str(root)):
    names = names_in(f"{root}/{name}", storage)
  else:
    root = local_path(str(root))
    folder = os.path.join(root, name)
    names = os.listdir(folder) if os.path.isdir(folder) else []
  versions = [n for n in names if all(p.isdecimal() for p in n.split("."))]
  if version:
    versions = [n for n in versions if n == version]
  if not versions:
    raise UserError(
      f"config.data.name='tfds:{wanted}': not prepared in {root} (looked for"
      f" {name}/{version or 'VERSION'}; there is: {', '.join(names) or 'none'})"
    )
  newest = max(versions, key=lambda n: [int(part) for part in n.split(".")])
  return os.path.join(root, name, newest)
