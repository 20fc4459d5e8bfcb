"""The same images and captions in every format that sources read."""

import csv
import io
import json

import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
from tensorboardX.record_writer import RecordWriter
import tensorflow_datasets as tfds

NAMES = ("boat", "cat", "dog")
COUNT = 30


def photos(folder=None, count=COUNT):
  """Returns {name: (JPEG, captions)}: drawn, or those of a folder."""
  if folder is not None:
    captions = {}
    with (folder / "captions.csv").open(newline="") as file:
      for row in csv.DictReader(file):
        captions.setdefault(row["image"], []).append(row["caption"])
    return {
      name.rsplit("/", 1)[-1].removesuffix(".jpg"): (
        (folder / name).read_bytes(),
        texts,
      )
      for name, texts in list(captions.items())[:count]
    }
  rng = np.random.default_rng(0)
  found = {}
  for number in range(count):
    buffer = io.BytesIO()
    size = (8 + number, 12)  # Height, width.
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(
      buffer, "jpeg"
    )
    texts = [f'photo {number}, "naïve" 猫\tand more', f"number {number}"]
    found[f"{number:05d}"] = buffer.getvalue(), texts
  return found


def write_folder(folder, images, kind):
  """Writes captions.csv, .tsv or .jsonl."""
  (folder / "images").mkdir(parents=True)
  rows = []
  for number, (name, (data, texts)) in enumerate(images.items()):
    (folder / "images" / f"{name}.jpg").write_bytes(data)
    rows += [(f"{name}.jpg", text, boxes(number)) for text in texts]
  with (folder / f"captions.{kind}").open("w", newline="") as file:
    if kind == "jsonl":
      for row in rows:
        named = dict(zip(("image", "caption", "boxes"), row, strict=True))
        file.write(json.dumps(named) + "\n")
    else:
      writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
      writer.writerows([("image", "caption", "boxes"), *rows])
  return str(folder)


def boxes(number):
  """Returns what every format but tables of text holds of an image."""
  return [[number, 0, 5, 5]] * (number % 3)


def details(number, name):
  """Returns what img2dataset's json says of an image."""
  return {
    "key": name,
    "width": 12,
    "height": 8 + number,
    "similarity": number / 100,
    "language": "de" if number % 3 == 0 else "en",
    "boxes": boxes(number),
  }


def write_tar(folder, images, per_shard=10):
  """Writes shards of jpg and json by webdataset, as img2dataset does."""
  import webdataset  # Loads PyTorch.

  folder.mkdir(parents=True)
  pattern = str(folder / "%05d.tar")
  with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as sink:
    for number, (name, (data, texts)) in enumerate(images.items()):
      more = details(number, name) | {"captions": texts, "alt_text": texts[:1]}
      sink.write(
        {
          "__key__": name,
          "jpg": data,
          "json": json.dumps(more).encode(),
        }
      )
  return str(folder)


def write_parquet(folder, images, files=2):
  """Writes files in the schema that `datasets` gives images and captions."""
  folder.mkdir(parents=True)
  image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  columns = {
    "image": (image, lambda i, n, d, t: {"bytes": d, "path": f"{n}.jpg"}),
    "captions": (pa.list_(pa.string()), lambda i, n, d, t: t),
    "width": (pa.int64(), lambda i, n, d, t: 12),
    "height": (pa.int64(), lambda i, n, d, t: 8 + i),
    "label": (pa.int64(), lambda i, n, d, t: i % 3),
    "boxes": (pa.list_(pa.list_(pa.int64())), lambda i, n, d, t: boxes(i)),
  }
  features = {
    "image": {"_type": "Image"},
    "captions": {"feature": {"dtype": "string", "_type": "Value"}},
    "label": {"names": list(NAMES), "_type": "ClassLabel"},
  }
  rows = [(i, n, *v) for i, (n, v) in enumerate(images.items())]
  schema = pa.schema(
    [(name, kind) for name, (kind, _) in columns.items()],
    {"huggingface": json.dumps({"info": {"features": features}})},
  )
  for number in range(files):
    part = rows[number * len(rows) // files :][: len(rows) // files]
    arrays = [
      pa.array([make(*row) for row in part], kind)
      for kind, make in columns.values()
    ]
    file = folder / f"train-{number:05d}-of-{files:05d}.parquet"
    pq.write_table(pa.table(arrays, schema), file, row_group_size=4)
  return str(folder)


class Photos(tfds.core.GeneratorBasedBuilder):
  """The images as a TFDS data set in ArrayRecord."""

  VERSION = tfds.core.Version("1.2.0")
  url_infos = None

  def __init__(self, images, data_dir):
    self._images = images
    super().__init__(data_dir=str(data_dir), file_format="array_record")

  def _info(self):
    features = {
      "photo": tfds.features.Image(shape=(None, None, 3)),
      "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
      "score": np.float32,
      "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.int64),
      "kind": tfds.features.ClassLabel(names=list(NAMES)),
      "id": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {"train": self._examples()}

  def _generate_examples(self):
    raise NotImplementedError

  def _examples(self):
    for number, (name, (data, texts)) in enumerate(self._images.items()):
      yield (
        number,
        {
          "photo": data,
          "captions": [{"text": text} for text in texts],
          "score": number / 100,
          "boxes": np.array(boxes(number), np.int64).reshape(-1, 4),
          "kind": number % 3,
          "id": name,
        },
      )


def write_tfds(data_dir, images, download_dir):
  """Returns the folder of the prepared data set."""
  builder = Photos(images, data_dir)
  builder.download_and_prepare(download_dir=str(download_dir))
  return str(builder.data_path)


def as_tfrecord(folder, output):
  """Writes a prepared data set as TFDS writes TFRecord, and returns it.

  The records' framing is tensorboardX's.
  """
  output.mkdir(parents=True)
  builder = tfds.builder_from_directory(folder)
  info = json.loads((builder.data_path / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  (output / "dataset_info.json").write_text(json.dumps(info))
  for file in builder.data_path.iterdir():
    if file.name == "features.json" or file.suffix == ".txt":
      (output / file.name).write_bytes(file.read_bytes())
    elif "array_record" in file.name:
      from array_record.python import array_record_module

      name = file.name.replace("array_record", "tfrecord")
      writer = RecordWriter(str(output / name))
      reader = array_record_module.ArrayRecordReader(str(file))
      for record in reader.read_all():
        writer.write(record)
      writer.close()
  return str(output)
