"""A folder of embeddings (big-siglip embed), as data to train and evaluate on.

A locked image tower says the same of an image in every epoch: its embeddings
are made once, and a text tower trained on them and on the images' captions
(SigLiT on four chips, arXiv:2303.15343, section 4.2).

Shape letters: E width of an embedding.
"""

from collections.abc import Sequence
import hashlib
import pathlib
from typing import Any

from absl import logging
import filelock
import numpy as np

from big_siglip.data.embedding_description import (
  check_whole,
  Description,
  NAME,
  OLD_NAMES,
)
from big_siglip.data.embedding_folder import (
  Reader,
)
from big_siglip.data.preprocessing import IMAGE_FIELDS, Preprocessing
from big_siglip.data.sources.example import column, Options, Record
from big_siglip.data.sources.folder import (
  chosen_images,
  Gathered,
  Listing,
  read_folder,
)
from big_siglip.data.sources.held_out import splits_by
from big_siglip.data.sources.record_source import RecordSource
from big_siglip.data.sources.remote_folder import copied
from big_siglip.data.sources.storage import Storage
from big_siglip.errors import BadExample, raise_problems, UserError

_SUFFIXES = (".json", ".parquet", ".csv", ".tsv", ".jsonl")  # Captions, too.


class EmbeddedSource(RecordSource):
  """The embeddings of images, with the captions of the folder they came from.

  The caption file is that of the embeddings' folder, or else of
  the images', which themselves need not be there any more. Captions without an
  embedding and embeddings without a caption are left out, and counted once in
  the log.

  Attributes:
    description: what the folder says of itself.
  """

  def __init__(self, folder: str, split: str, options: Options | None = None):
    """Joins embeddings and captions by the images' names.

    Raises:
      UserError: unknown split; the folder is not whole, or of texts; its
        captions are missing or damaged, or none belongs to an embedding; a
        number is not finite.
    """
    options = options or Options()
    records = _EmbeddedRecords(folder, split, options)
    self.description = records.description
    super().__init__(records, options)


class _EmbeddedRecords:
  """What `EmbeddedSource` reads; see `example.Records`."""

  faults = ()
  image_key = "embedding"
  label_key = class_names = None
  field_names = ()

  def __init__(self, folder: str, split: str, options: Options):
    self.where = f"the embeddings in {folder}"
    field = f"config.data.path={str(folder)!r}"
    reader = Reader(_local(folder, field, options))
    self.description = reader.description
    if self.description.kind != "images":
      raise UserError(f"{field}: holds embeddings of texts, must be of images")
    check_whole(self.description, field)
    if not reader.is_whole:
      raise UserError(
        f"{field}: holds {len(reader.shards)} of {self.description.num_shards} "
        "shards; big-siglip embed, started again, makes the others"
      )
    rows, captions = _join(reader, split, options, field)
    self.text_keys = captions.columns.texts
    self._file = _random_access(reader)
    self._embeddings = np.load(self._file, mmap_mode="r")

    def digests(keys: Sequence[str]) -> list[bytes | None]:
      """Equal images have equal embeddings."""
      found = [self._embeddings[rows[k]] if k in rows else None for k in keys]
      return [
        None if row is None else hashlib.sha256(row.tobytes()).digest()
        for row in found
      ]

    chosen = chosen_images(
      captions, split, folder, lambda images: splits_by(images, (digests,))
    )
    chosen = [key for key in chosen if key in rows]
    if not chosen:
      raise UserError(f"{field}: split {split!r} is empty")
    texts = captions.images
    self._keys = tuple(chosen)
    self._texts = tuple(texts[key] for key in chosen)
    self._rows = np.array([rows[key] for key in chosen])

  def __len__(self) -> int:
    return len(self._keys)

  def read(self, index: int) -> Record:
    """Returns an embedding, float32 [E], and the row of its image."""
    embedding = self._embeddings[self._rows[index]].astype(np.float32)
    fields = {**self._texts[index], self.image_key: embedding}
    return Record(self._keys[index], fields)

  def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns fields of all records, from the caption file."""
    return {key: column([row.get(key) for row in self._texts]) for key in keys}

  def __getstate__(self) -> dict[str, Any]:
    # Workers map the file themselves; pickled it would be all its numbers.
    return {k: v for k, v in vars(self).items() if k != "_embeddings"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._embeddings = np.load(self._file, mmap_mode="r")


def check_images(
  description: Description, folder: str, *, width: int, config: Any
) -> None:
  """Compares embeddings with the image tower that a config describes.

  Args:
    description: of the embeddings.
    folder: where they lie.
    width: E, of `config.model`.
    config: the config.

  Raises:
    UserError: a line for each field that differs.
  """
  made = Preprocessing.from_dict(description.preprocessing)
  found = Preprocessing.of(config).differences(made, IMAGE_FIELDS)
  if description.width != width:
    found.insert(0, f"config.model.embed_dim={width}, not {description.width}")
  raise_problems([f"{line}, as {folder} was embedded with" for line in found])


def _local(folder: str, field: str, options: Options) -> pathlib.Path:
  """Returns the folder, or a copy of a remote one: rows need a local file."""
  storage = Storage(options.retry_seconds)
  try:
    names = (NAME, OLD_NAMES[NAME])
    there = (n for n in names if storage.exists(f"{folder}/{n}"))
    local = copied(str(folder), storage, next(there, NAME), _SUFFIXES)
  except BadExample as error:
    what = f"holds no embeddings (no {NAME})"
    reason = what if error.kind == "missing" else error
    raise UserError(f"{field}: {reason}") from error
  return pathlib.Path(local).resolve()


def _join(
  reader: Reader, split: str, options: Options, field: str
) -> tuple[dict[str, int], Gathered]:
  """Returns rows by key, and what the folder says of their images."""
  rows = {key: row for row, key in enumerate(reader.keys())}
  folder = str(_captions_folder(reader))
  listing = Listing(folder, Storage(options.retry_seconds), tuple(rows))
  _, captions = read_folder(folder, split, options, listing.find)
  number, missing = len(captions.images), list(captions.missing)
  if len(missing) == number:
    raise UserError(
      f"{field}: none of its {len(rows)} embeddings is of one of the {number} "
      f"captioned images (such as {missing[0]!r}, not {next(iter(rows))!r})"
    )
  unused = [key for key in rows if key not in captions.images]
  for count, whole, what, names in (
    (len(missing), number, "captioned images have no embedding", missing),
    (len(unused), len(rows), "embeddings have no caption", unused),
  ):
    if count:
      logging.warning(
        "%s: %d of %d %s, and are left out (first: %s)",
        field,
        count,
        whole,
        what,
        names[0],
      )
  return rows, captions


def _captions_folder(reader: Reader) -> pathlib.Path:
  """Returns the folder whose captions are meant."""
  images = pathlib.Path(reader.description.inputs)
  if not images.is_dir():  # A list of images, or gone.
    images = images.parent
  beside = any(reader.folder.glob("captions.*")) or not images.is_dir()
  return reader.folder if beside else images


def _random_access(reader: Reader) -> pathlib.Path:
  """Returns a .npy file of all rows, made when they are first trained on.

  To read a row of a Parquet file is to read thousands of them.
  """
  made = reader.description
  whose = f"{made.parameters} {made.fingerprint} {made.preprocessing}"
  whose += f" {made.update}" * bool(made.update)  # Files of before are known.
  digest = hashlib.sha256(whose.encode()).hexdigest()[:16]
  file = reader.folder / f".rows-{digest}.npy"
  try:
    with filelock.FileLock(reader.folder / ".rows.lock"):
      if not file.exists():
        for other in reader.folder.glob(".rows-*.npy"):  # Of before an update.
          other.unlink()
        _write_rows(reader, file)
  except OSError as error:
    raise UserError(
      f"{reader.folder}: not writable ({error.strerror}), and a copy of its "
      "rows must lie there, for random access"
    ) from error
  return file


def _write_rows(reader: Reader, file: pathlib.Path) -> None:
  partial = file.with_name(f"{file.name}.partial")
  made = reader.description
  rows = np.lib.format.open_memmap(
    partial, "w+", made.dtype, (reader.num_rows, made.width)
  )
  start = 0
  for block in reader.blocks(4096):
    if not np.isfinite(block).all():
      raise UserError(f"{reader.folder}: holds numbers that are not finite")
    rows[start : start + len(block)] = block
    start += len(block)
  rows.flush()
  partial.replace(file)
