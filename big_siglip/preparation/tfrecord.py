"""Rewrites a TFDS data set from TFRecord to ArrayRecord, record by record.

TFRecord can only be read from its start. Its framing is that of TensorFlow
(core/lib/io/record_writer.h): length uint64, its masked CRC-32C, the bytes,
their masked CRC-32C; all little-endian. The records themselves stay as they
are, so nothing is decoded and nothing is lost.
"""

from collections.abc import Callable, Iterator
import json
import os
import shutil
import struct
from typing import Any, BinaryIO

from absl import logging
from array_record.python import array_record_module
import google_crc32c

from big_siglip.data.sources.storage import local_path, Storage
from big_siglip.errors import BadExample, UserError
from big_siglip.progress import Progress

_OLD, _NEW = "tfrecord", "array_record"
_MASK_DELTA = 0xA282EAD8  # Of TensorFlow's lib/hash/crc32c.h.


def rewrite(folder: str, output: str) -> dict[str, int]:
  """Writes the data set of `folder` as ArrayRecord to `output`.

  Features, splits and the order of the records stay. Damaged records are left
  out, named in the log, and no longer counted by the splits.

  Args:
    folder: of a prepared data set, with dataset_info.json; local or remote.
    output: a local folder that does not exist; it appears when all is written.

  Returns:
    "records", "damaged" and "shards".

  Raises:
    UserError: no such data set, another format, an unfinished one, or `output`
      exists or cannot be written.
  """
  storage = Storage()
  info = _read_info(folder, storage)
  output = local_path(output).rstrip("/")
  if os.path.exists(output):
    raise UserError(f"--output={output}: exists; must be a new folder")
  partial = f"{output}.partial"
  counts = {"records": 0, "damaged": 0, "shards": 0}
  try:
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    splits = info.get("splits", ())
    total = sum(int(n) for split in splits for n in split["shardLengths"])
    with Progress(total, "records") as show:
      for split in splits:
        _rewrite_split(info, split, folder, partial, storage, counts, show.add)
    info["fileFormat"] = _NEW
    _copy_descriptions(folder, partial, storage)
    with open(os.path.join(partial, "dataset_info.json"), "w") as file:
      json.dump(info, file, indent=2)
    os.rename(partial, output)
  except BadExample as error:
    raise UserError(f"--input={folder}: {error.name}: {error}") from error
  except OSError as error:
    raise UserError(
      f"--output={output}: cannot be written ({error.strerror or error})"
    ) from error
  return counts


def read_records(file: BinaryIO, name: str) -> Iterator[bytes | None]:
  """Yields the records of an open TFRecord file, None for a damaged one.

  The rest of a file whose framing is damaged is one damaged record: where the
  next one starts is not known.
  """
  while header := file.read(12):
    length = int.from_bytes(header[:8], "little")
    if len(header) < 12 or not _checks(header[:8], header[8:]):
      logging.warning("%s: damaged at byte %d", name, file.tell() - len(header))
      yield None
      return
    record, footer = file.read(length), file.read(4)
    if len(footer) < 4:
      logging.warning("%s: ends within a record", name)
      yield None
      return
    if _checks(record, footer):
      yield record
    else:
      start = file.tell() - 4 - length
      logging.warning("%s: damaged record at byte %d", name, start)
      yield None


def _checks(data: bytes, stored: bytes) -> bool:
  checksum = google_crc32c.value(data)
  masked = ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF
  return stored == struct.pack("<I", masked)


def _read_info(folder: str, storage: Storage) -> dict[str, Any]:
  try:
    info = json.loads(storage.read(os.path.join(folder, "dataset_info.json")))
  except (BadExample, ValueError) as error:
    raise UserError(
      f"--input={folder}: must be the folder of a prepared TFDS data set"
      f" (dataset_info.json: {error})"
    ) from error
  # TFDS wrote no format when there was but one.
  if info.get("fileFormat") not in (None, "", _OLD):
    raise UserError(
      f"--input={folder}: is {info['fileFormat']}, must be {_OLD}"
    )
  return info


def _rewrite_split(
  info: dict[str, Any],
  split: dict[str, Any],
  folder: str,
  output: str,
  storage: Storage,
  counts: dict[str, int],
  show: Callable[[int], None],
) -> None:
  lengths = split["shardLengths"]
  template = split.get("filepathTemplate") or (
    "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  )
  for number, expected in enumerate(lengths):
    names = [
      template.replace("{DATASET}", info["name"])
      .replace("{SPLIT}", split["name"])
      .replace("{FILEFORMAT}", kind)
      .replace("{SHARD_X_OF_Y}", f"{number:05d}-of-{len(lengths):05d}")
      for kind in (_OLD, _NEW)
    ]
    path = os.path.join(folder, names[0])
    writer = array_record_module.ArrayRecordWriter(
      os.path.join(output, names[1]), "group_size:1"
    )
    written = 0
    with storage.open(path) as file:
      for record in read_records(file, path):
        show(1)
        if record is not None:
          writer.write(record)
          written += 1
    writer.close()
    lost = int(expected) - written
    if lost:
      logging.warning("%s: %d of %s records are lost", path, lost, expected)
    lengths[number] = str(written)
    counts["records"] += written
    counts["damaged"] += lost
    counts["shards"] += 1


def _copy_descriptions(folder: str, output: str, storage: Storage) -> None:
  """Copies what describes the features: features.json and names of labels."""
  names = ["features.json"]
  if not storage.exists(os.path.join(folder, names[0])):
    raise UserError(
      f"--input={folder}: has no features.json: TFDS before 4.0 wrote it"
    )
  pattern = os.path.join(folder, "*.txt")
  names += [f.rsplit("/", 1)[-1] for f in storage.glob(pattern)]
  for name in names:
    data = storage.read(os.path.join(folder, name))
    with open(os.path.join(output, name), "wb") as file:
      file.write(data)
