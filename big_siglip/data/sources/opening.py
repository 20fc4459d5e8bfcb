"""From the name of a data set to its examples."""

from big_siglip import extras
from big_siglip.data.sources.array_records import SerializedExamples
from big_siglip.data.sources.example import Options, Records, Source
from big_siglip.data.sources.folder import FolderRecords
from big_siglip.data.sources.record_source import RecordSource
from big_siglip.data.sources.tar import TarRecords
from big_siglip.errors import UserError
from big_siglip.schema.sources import is_own, mistake

_OF_FILES = ("folder", "arrayrecord", "tar", "parquet")


def open_source(
  name: str,
  split: str,
  path: str | None = None,
  options: Options | None = None,
) -> Source:
  """Opens one split of a data set, preparing the project's own where need be.

  Args:
    name: one of `schema.sources.NAMES`; docs/data.md says what each reads.
    split: "train" or "test"; for a folder also "all", or the data set's own. A
      folder's test split is a tenth of its images where it has none. Tar
      shards, ArrayRecord and Parquet files have "all", or what their names say.
    path: the folder or the files, or where the project's own data sets lie
      (None: a cache).
    options: what to take of it; None: all, found by type.

  Raises:
    UserError: one line that says what cannot be opened and why.
  """
  options = options or Options()
  if name == "embeddings":
    if not path:
      raise UserError("config.data.path=None: must be the folder to read")
    # Here and below, imported late: what needs libraries that are optional.
    with extras.needed_by("config.data.name='embeddings'"):
      from big_siglip.data.sources.embedded import EmbeddedSource
    return EmbeddedSource(path, split, options)
  return RecordSource(_open_records(name, split, path, options), options)


def _open_records(
  name: str, split: str, path: str | None, options: Options
) -> Records:
  if name == "tfds" or name.startswith("tfds:"):
    with extras.needed_by(f"config.data.name={name!r}"):
      from big_siglip.data.sources.prepared_folder import open_prepared
    return open_prepared(name, split, path, options)
  if is_own(name):
    with extras.needed_by(f"config.data.name={name!r}", "demo"):
      from big_siglip.data.sources.prepared import PreparedRecords
      from big_siglip.datasets import prepare
    return PreparedRecords(prepare.prepare(name, path), split, options)
  if rule := mistake(name):
    raise UserError(f"config.data.name={name!r}: {rule}")
  if not path:
    what = "the folder" if name == "folder" else "the folder or files"
    raise UserError(f"config.data.path=None: must be {what} to read")
  match name:
    case "folder":
      return FolderRecords(path, split, options)
    case "tar":
      return TarRecords(path, split, options)
    case "arrayrecord":
      return SerializedExamples(path, split, options)
  with extras.needed_by("config.data.name='parquet'"):
    from big_siglip.data.sources.parquet import ParquetRecords
  return ParquetRecords(path, split, options)
