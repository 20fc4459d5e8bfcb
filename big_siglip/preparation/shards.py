"""Shards of the data set: ArrayRecord, as TFDS reads them, without TensorFlow.

TFDS's own Beam writers would do, but for two things: they write a data set in
one go, so that a killed run starts anew, and they send all image bytes through
Beam's shuffle.
"""

from collections.abc import Iterable
import io
import json
import os
import tempfile
from typing import Any
import uuid

from array_record.python import array_record_module
from etils import epath
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core import (
  dataset_info,
  example_serializer,
  naming,
)

from big_siglip.preparation.files import is_remote, write_whole
from big_siglip.preparation.records import Record, Tally

SPLITS = ("train", "test")
VERSION = tfds.core.Version("1.0.0")


def make_features() -> tfds.features.FeaturesDict:
  """Returns what an example holds; "language" and "page_url" go by caption."""
  text, texts = tfds.features.Text, tfds.features.Sequence
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "width": np.int32,  # As it is kept, before any turn that EXIF asks for.
      "height": np.int32,
      "captions": texts(text()),
      "language": texts(text()),
      "page_url": texts(text()),
      "name": text(),
      "image_url": text(),
      "metadata_url": text(),
      "attribution": text(),
      "license": text(),
    }
  )


def split_of(key: str, test_share: float) -> str:
  """Returns "train" or "test": a share of all, chosen by the key alone."""
  # Not the digits that say which shard: each is to have its share of tests.
  return "test" if int(key[8:16], 16) < test_share * 2**32 else "train"


def part_name(split: str, number: int) -> str:
  """Returns the name of a shard until all shards are known."""
  return f"{split}-{number:05}.array_record"


def write_shard(
  folder: epath.Path,
  number: int,
  records: Iterable[Record],
  tally: Tally,
  test_share: float,
) -> None:
  """Writes one input shard's examples, and then `marker` beside them.

  Args:
    folder: where the parts go.
    number: of this shard.
    records: with images, in the order in which they are written.
    tally: of what happened to `records`; written into the marker.
    test_share: of the examples, which go into the split "test".
  """
  folder.mkdir(parents=True, exist_ok=True)
  features = make_features()
  serializer = example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  writers = {}
  try:
    for record in records:
      split = split_of(record.key, test_share)
      if split not in writers:
        writers[split] = Writer(folder / part_name(split, number))
      example = features.encode_example(_example(record))
      # Not serialize_example, whose order of features changes from one
      # process to the next: a restart is to give the same bytes.
      message = serializer.get_tf_example(example)
      writers[split].write(message.SerializeToString(deterministic=True))
      tally.count("examples")
      tally.count("captions", len(record.captions))
  except BaseException:
    for writer in writers.values():
      writer.discard()
    raise
  lengths = {split: writer.close() for split, writer in writers.items()}
  fields = {"lengths": lengths, **tally.to_json()}
  write_whole(marker(folder, number), json.dumps(fields).encode())


def marker(folder: epath.Path, number: int) -> epath.Path:
  """Returns the file that says that a shard is whole, and what it holds."""
  return folder / f"{number:05}.json"


def read_marker(folder: epath.Path, number: int) -> dict[str, Any] | None:
  """Returns {"lengths", "counts", "faults"}, or None: not written yet."""
  try:
    return json.loads(marker(folder, number).read_text())
  except FileNotFoundError:
    return None


def shard_template(
  folder: epath.Path, name: str, split: str
) -> naming.ShardedFileTemplate:
  """Returns TFDS's names for the files of a split."""
  return naming.ShardedFileTemplate(
    data_dir=folder,
    dataset_name=name,
    split=split,
    filetype_suffix="array_record",
  )


def write_metadata(
  folder: epath.Path, name: str, splits: list[tfds.core.SplitInfo], about: dict
) -> None:
  """Writes features.json, LICENSE and, last, dataset_info.json.

  Args:
    folder: where the shards lie.
    name: of the data set.
    splits: with the lengths of their shards.
    about: "description", "homepage", "citation" and "license" of it.
  """
  with tempfile.TemporaryDirectory() as scratch:
    scratch = epath.Path(scratch)
    # Not tfds.folder_dataset's function: it would look for the shards there.
    identity = dataset_info.DatasetIdentity(
      name=name, version=VERSION, data_dir=os.fspath(scratch), module_name=""
    )
    info = tfds.core.DatasetInfo(
      builder=identity,
      features=make_features(),
      disable_shuffling=True,  # Their order is by key, or by input.
      **about,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(scratch)
    files = sorted(scratch.iterdir(), key=lambda f: f.name.startswith("data"))
    for file in files:
      write_whole(folder / file.name, file.read_bytes())


def _example(record: Record) -> dict[str, Any]:
  with Image.open(io.BytesIO(record.image)) as image:
    width, height = image.size
  return {
    "image": record.image,
    "width": width,
    "height": height,
    "captions": [caption.text for caption in record.captions],
    "language": [caption.language for caption in record.captions],
    "page_url": [caption.page_url for caption in record.captions],
    "name": record.name,
    "image_url": record.image_url,
    "metadata_url": record.metadata_url,
    "attribution": record.attribution,
    "license": record.license,
  }


class Writer:
  """An ArrayRecord file that takes its name when it is whole."""

  def __init__(self, path: epath.Path):
    """Opens a file beside it; a local one where `path` is in a bucket."""
    self._path = path
    # ArrayRecord's writer knows local files alone.
    beside = tempfile.gettempdir() if is_remote(path) else path.parent
    part = f".{path.name}.{uuid.uuid4().hex}"
    self._part = epath.Path(beside) / part
    self._writer = array_record_module.ArrayRecordWriter(
      os.fspath(self._part), "group_size:1"
    )
    self._count = 0

  def write(self, example: bytes) -> None:
    """Adds a record."""
    self._writer.write(example)
    self._count += 1

  def close(self) -> int:
    """Returns how many records the file has, which now has its name."""
    self._writer.close()
    if is_remote(self._path):
      self._part.copy(self._path, overwrite=True)
      self._part.unlink()
    else:
      self._part.replace(self._path)
    return self._count

  def discard(self) -> None:
    """Removes what was written."""
    self._writer.close()
    self._part.unlink(missing_ok=True)
