"""Adds boxes to a prepared TFDS data set, from a table such as a detector's.

Records get "boxes" (top, left, bottom, right, in fractions), "box_texts" and,
where the table has them, "box_scores"; all else stays as it is, and where.
"""

import dataclasses
import json
import os
import shutil
from typing import Any

from etils import epath
from google.protobuf import message
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from big_siglip.data import images
from big_siglip.data.sources.array_records import ArrayRecords, Shard
from big_siglip.data.sources.example import NAME_NAMES
from big_siglip.data.sources.prepared import shards_of
from big_siglip.data.sources.prepared_folder import find_builder
from big_siglip.data.sources.storage import local_path, Storage
from big_siglip.errors import BadExample, naming, UserError
from big_siglip.preparation import box_table
from big_siglip.preparation.box_table import BoxTable
from big_siglip.preparation.shards import Writer
from big_siglip.progress import Progress

REPORT = "boxes_report.jsonl"
SUMMARY = "boxes_summary.json"
_INFO = "dataset_info.json"
_ADDED = ("boxes", "box_texts", "box_scores")


@dataclasses.dataclass(frozen=True)
class Limits:
  """What is kept of a table.

  Attributes:
    min_score: at least so much; None: all.
    max_boxes: of an image, those with the highest scores; None: all.
  """

  min_score: float | None = None
  max_boxes: int | None = None


def add(
  folder: str,
  file: str,
  output: str,
  *,
  form: str,
  columns: tuple[str, ...] = (),
  limits: Limits = Limits(),
) -> dict[str, int]:
  """Writes a data set with boxes, record by record.

  Args:
    folder: of a prepared data set in ArrayRecord; local or remote.
    file: the table: see `box_table.read`, as for the next two.
    output: a local folder that does not exist; it appears when all is written.
    form: of the boxes.
    columns: of the table.
    limits: what is kept.

  Returns:
    Counts: "images", "images with boxes", "boxes", "rows", and what was left
    out, by why.

  Raises:
    UserError: no such data set or table; the data set has boxes already, or no
      names; no row names an image of it; `output` exists or cannot be written.
  """
  storage = Storage()
  with naming({"config.data.path": "the data set"}):
    builder, remote = find_builder(folder, storage)
  features = builder.info.features
  name_key, image_key = _keys(features, folder)
  output = local_path(output).rstrip("/")
  if os.path.exists(output):
    raise UserError(f"--output={output}: exists; must be a new folder")
  table = box_table.read(file, form, columns, limits.min_score)
  job = _Job(table, limits, name_key, image_key, storage)
  partial = f"{output}.partial"
  try:
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    written = _write(builder, remote, partial, job)
    if table.by_image and not table.matched:
      first = next(iter(table.by_image))
      raise UserError(
        f"--table={file}: names no image of {folder}: it has {first!r}, the"
        f" data set {job.last_name!r} ({name_key})"
      )
    _describe(builder, partial, written, table.has_scores)
    _report(partial, table)
    os.rename(partial, output)
  except OSError as error:
    raise UserError(
      f"--output={output}: cannot be written ({error.strerror or error})"
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return table.counts


@dataclasses.dataclass
class _Job:
  """What is needed for each record, and what was met.

  Attributes:
    table: of boxes.
    limits: what is kept of it.
    name_key: the field of an image's name.
    image_key: of the image.
    storage: reads the shards.
    last_name: that of the last image.
  """

  table: BoxTable
  limits: Limits
  name_key: str
  image_key: str
  storage: Storage
  last_name: str = ""


def _keys(features: Any, folder: str) -> tuple[str, str]:
  """Returns the features of names and of images.

  Raises:
    UserError: there are boxes already, or one of the two is missing.
  """
  if there := [name for name in _ADDED if name in features]:
    raise UserError(f"{folder}: has {', '.join(there)} already")
  kinds = tfds.features.Text, tfds.features.Image
  texts, pictures = (
    [k for k, f in features.items() if isinstance(f, kind)] for kind in kinds
  )
  named = [name for name in NAME_NAMES if name in texts]
  if not named or not pictures:
    raise UserError(
      f"{folder}: must have an image, and a text that names it"
      f" ({', '.join(NAME_NAMES)}); it has {', '.join(features)}"
    )
  return named[0], "image" if "image" in pictures else pictures[0]


def _write(
  builder: tfds.core.DatasetBuilder,
  remote: str | None,
  output: str,
  job: _Job,
) -> dict[str, list[tuple[int, int]]]:
  """Writes all; returns (records, their bytes) of each shard, by split."""
  written = {}
  infos = builder.info.splits
  total = sum(info.num_examples for info in infos.values())
  with Progress(total, "images") as show:
    for split in infos:
      written[split] = []
      for shard in shards_of(builder, split, remote):
        written[split].append(_write_shard(shard, output, job))
        show.add(shard.take)
  return written


def _write_shard(shard: Shard, output: str, job: _Job) -> tuple[int, int]:
  """Writes one, without damaged records; returns (records, their bytes).

  Raises:
    UserError: it is not there.
  """
  records = ArrayRecords([shard], job.storage)
  writer = Writer(epath.Path(output) / os.path.basename(shard.path))
  size = 0
  try:
    for i in range(len(records)):
      try:
        example = tf_example_pb2.Example.FromString(records[i])
      except (BadExample, message.DecodeError) as error:
        if getattr(error, "kind", "record") != "record":
          raise UserError(f"{shard.path}: {error}") from error
        job.table.count("damaged records")
        continue
      _add_boxes(example.features.feature, job)
      record = example.SerializeToString(deterministic=True)
      writer.write(record)
      size += len(record)
  except BaseException:
    writer.discard()
    raise
  return writer.close(), size


def _add_boxes(fields: Any, job: _Job) -> None:
  """Adds to the features of an example what the table says of its image."""
  table = job.table
  names = fields[job.name_key].bytes_list.value
  name = names[0].decode("utf-8", "replace") if names else ""
  job.last_name = name
  height, width = 1, 1
  if name in table.by_image and table.form != "yxyx":
    encoded = fields[job.image_key].bytes_list.value
    width, height = images.size_of(encoded[0]) if encoded else (None, None)
  if height is None or width is None:
    found = [], [], []
    for entry in table.by_image[name]:
      table.refuse(entry.line, name, "the image has no size")
    table.matched.add(name)
  else:
    found = box_table.of_image(table, name, height, width, job.limits.max_boxes)
  boxes, texts, scores = found
  fields["boxes"].float_list.value.extend(np.ravel(boxes))
  fields["box_texts"].bytes_list.value.extend(text.encode() for text in texts)
  if table.has_scores:
    fields["box_scores"].float_list.value.extend(scores)
  table.count("images")
  table.count("images with boxes", bool(boxes))
  table.count("boxes", len(boxes))


def _describe(
  builder: tfds.core.DatasetBuilder,
  output: str,
  written: dict[str, list[tuple[int, int]]],
  has_scores: bool,
) -> None:
  """Copies what describes the data set, with the new features."""
  folder = epath.Path(builder.data_path)
  for file in folder.iterdir():
    if file.name.endswith((".txt", "LICENSE")):
      file.copy(os.path.join(output, file.name))
  sequence = tfds.features.Sequence
  added = {
    "boxes": sequence(tfds.features.BBoxFeature()),
    "box_texts": sequence(tfds.features.Text()),
  }
  if has_scores:
    added["box_scores"] = sequence(np.float32)
  features = {**dict(builder.info.features.items()), **added}
  tfds.features.FeaturesDict(features).save_config(output)
  info = json.loads((folder / _INFO).read_text())
  for split in info["splits"]:
    shards = written[split["name"]]
    split["shardLengths"] = [str(records) for records, _ in shards]
    split["numBytes"] = str(sum(size for _, size in shards))
  (epath.Path(output) / _INFO).write_text(json.dumps(info, indent=2))


def _report(output: str, table: BoxTable) -> None:
  """Writes what was counted, and a line for each row that was left out."""
  lost = table.lost()
  table.count("of no image", len(lost))
  folder = epath.Path(output)
  (folder / SUMMARY).write_text(json.dumps(table.counts, indent=1))
  lines = sorted([*table.refused, *lost], key=lambda fault: fault["line"])
  (folder / REPORT).write_text("".join(json.dumps(f) + "\n" for f in lines))
