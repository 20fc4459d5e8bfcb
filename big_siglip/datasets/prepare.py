"""Writes the project's own data sets to disk, once, on first use."""

from collections.abc import Iterator
import contextlib
import io
import os
import tempfile

from absl import logging
from etils import epath
import filelock
import tensorflow_datasets as tfds

from big_siglip.datasets.digits import Digits
from big_siglip.datasets.known import default_data_dir
from big_siglip.datasets.scenes import (
  NUM_TRAIN,
  Scenes,
  ScenesConfig,
  ScenesWide,
)
from big_siglip.errors import UserError
from big_siglip.schema.sources import COUNTED, is_own, OWN

# Records of a file: each read costs ArrayRecord time for all of them.
_SHARD = 4_096
_BUILDERS = {"digits": Digits, "scenes": Scenes, "scenes_wide": ScenesWide}


def is_prepared(name: str, data_dir: str | None = None) -> bool:
  """Whether a data set of the project's own lies whole on disk."""
  name = _with_count(name)
  root = epath.Path(data_dir or default_data_dir()).expanduser()
  return _open_whole(name, root) is not None


def prepare(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
  """Returns the builder of a data set that lies whole on disk.

  Several processes may ask at the same time: one writes, the others wait. TFDS
  writes into a temporary folder and renames it when done, so what a killed
  process leaves behind is never read; it is removed here.

  Args:
    name: of `sources.OWN`, or NAME/COUNT of a number of training examples.
    data_dir: where data sets lie; None for `default_data_dir()`.

  Raises:
    UserError: the name is not known or the folder cannot be written.
  """
  if not is_own(name):
    own = (*OWN, *(f"{counted}/COUNT" for counted in COUNTED))
    raise UserError(f"data set {name!r}: must be one of {', '.join(own)}")
  name = _with_count(name)
  root = epath.Path(data_dir or default_data_dir()).expanduser()
  # A whole data set may lie in a folder that only its owner can write.
  if builder := _open_whole(name, root):
    return builder
  try:
    root.mkdir(parents=True, exist_ok=True)
    with _lock(name, root):
      builder = _open_whole(name, root)
      return builder or _write(name, root)
  except OSError as e:
    raise UserError(
      f"config.data.path={os.fspath(root)!r}: cannot write the data set"
      f" {name} there ({e.strerror or e})"
    ) from e


def _with_count(name: str) -> str:
  return f"{name}/{NUM_TRAIN}" if name in COUNTED else name


def _lock(name: str, root: epath.Path) -> contextlib.AbstractContextManager:
  if "://" in os.fspath(root):  # Buckets know no locks; renames still protect.
    return contextlib.nullcontext()
  return filelock.FileLock(root / f".{name.replace('/', '-')}.lock")


def _make_builder(name: str, root: epath.Path) -> tfds.core.DatasetBuilder:
  kind, _, count = name.partition("/")
  options = dict(data_dir=os.fspath(root), file_format="array_record")
  if kind not in COUNTED:
    return _BUILDERS[kind](**options)
  config = ScenesConfig(name=count, num_train=int(count))
  return _BUILDERS[kind](config=config, **options)


def _folder(name: str, root: epath.Path) -> epath.Path:
  return root / name / str(_BUILDERS[name.partition("/")[0]].VERSION)


def _open_whole(name: str, root: epath.Path) -> tfds.core.DatasetBuilder | None:
  """Returns the builder, or None unless all files of the data set are there."""
  if not (_folder(name, root) / "dataset_info.json").exists():
    return None
  with _quiet():
    builder = _make_builder(name, root)
  shards = [f for s in builder.info.splits.values() for f in s.filepaths]
  return builder if shards and all(f.exists() for f in shards) else None


def _write(name: str, root: epath.Path) -> tfds.core.DatasetBuilder:
  folder = _folder(name, root)
  logging.info("Preparing the data set %s in %s.", name, folder)
  # Under the lock nobody else is writing: these are what killed ones left.
  leftovers = [folder, *folder.parent.glob("incomplete.*")]
  for leftover in leftovers:
    if leftover.exists():
      leftover.rmtree()
  with _quiet(), tempfile.TemporaryDirectory() as downloads:
    builder = _make_builder(name, root)
    builder.download_and_prepare(
      download_dir=downloads,
      download_config=tfds.download.DownloadConfig(num_shards=_shards(name)),
    )
  return builder


def _shards(name: str) -> int:
  """Returns in how many files each split of a data set lies."""
  _, _, count = name.partition("/")
  return max(int(count or 0) // _SHARD, 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS from filling the terminal: it prints, logs and draws bars."""
  tfds.disable_progress_bar()
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)
