"""Boxes added to a prepared data set from a table, by the program itself."""

import csv
import io
import json
import shutil

from array_record.python.array_record_module import (
  ArrayRecordReader,
  ArrayRecordWriter,
)
import numpy as np
from PIL import Image
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from big_siglip.data import sources
from big_siglip.data.box_reading import Reader
from big_siglip.data.sources import Options

NAMES = ("a/0.jpg", "a/1.jpg", "a/2.jpg", "b/3.jpg")
WIDTH, HEIGHT = 100, 50
# (image, xyxy in pixels, text, score), as a detector writes them; two are bad,
# one is of no image, one too uncertain.
ROWS = (
  ("a/0.jpg", (10, 5, 60, 30), "a dog", 0.9),
  ("a/0.jpg", (0, 0, 100, 50), "a lawn", 0.5),
  ("a/0.jpg", (50, 25, 101, 50), "a ball", 0.7),  # One pixel beyond.
  ("a/1.jpg", (60, 5, 10, 30), "a dog", 0.9),  # Upside down.
  ("a/1.jpg", (10, 5, 400, 30), "a cat", 0.9),
  ("a/1.jpg", (10, 5, 60, 30), "", 0.9),
  ("a/2.jpg", (10, 5, 60, 30), "a dog", 0.2),
  ("c/9.jpg", (10, 5, 60, 30), "a dog", 0.9),
  ("b/3.jpg", (0, 25, 50, 50), "a cat", 0.3),
)


def _png(number):
  file = io.BytesIO()
  Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(file, "png")
  return file.getvalue()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """A prepared data set of four images, in three shards and two splits."""
  folder = tmp_path_factory.mktemp("plain") / "1.0.0"
  folder.mkdir()
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "captions": tfds.features.Sequence(tfds.features.Text()),
      "name": tfds.features.Text(),
    }
  )
  identity = tfds.core.dataset_info.DatasetIdentity(
    name="photos",
    version=tfds.core.Version("1.0.0"),
    data_dir=str(folder),
    module_name="photos",
  )
  writer = tfds.core.SequentialWriter(
    tfds.core.DatasetInfo(builder=identity, features=features),
    2,
    file_format=tfds.core.FileFormat.ARRAY_RECORD,
  )
  writer.initialize_splits(["train", "test"])
  examples = [
    {"image": _png(i), "captions": [f"photo {i}"], "name": name}
    for i, name in enumerate(NAMES)
  ]
  writer.add_examples({"train": examples[:3], "test": examples[3:]})
  writer.close_all()
  return folder


def _write(folder, kind):
  """Writes the rows in one of the forms that are read; returns the file."""
  plain = [
    {"name": name, "box": list(box), "text": text, "score": score}
    for name, box, text, score in ROWS
  ]
  if kind == "parquet":
    file = folder / "found.parquet"
    pq.write_table(pa.Table.from_pylist(plain), file)
  elif kind == "lists":  # What transformers' detectors return, an image a line.
    file = folder / "found.jsonl"
    lines = []
    for name in dict.fromkeys(row["name"] for row in plain):
      own = [row for row in plain if row["name"] == name]
      line = {"image_id": name, "boxes": [row["box"] for row in own]}
      line["labels"] = [row["text"] for row in own]
      line["scores"] = [row["score"] for row in own]
      lines.append(json.dumps(line))
    file.write_text("\n".join(lines))
  else:
    file = folder / "found.csv"
    with file.open("w", newline="") as opened:
      writer = csv.writer(opened)
      head = ["xmin", "ymin", "xmax", "ymax", "label", "confidence"]
      writer.writerow(["image", *head])
      for name, box, text, score in ROWS:
        writer.writerow([name, *box, text, score])
  return file


def _add(data, table, output, *flags):
  given = (f"--table={table}", "--box_format=xyxy", f"--output={output}")
  return programs.call("tools/prepare.py", "boxes", data, *given, *flags)


@pytest.mark.parametrize("kind", ["parquet", "lists", "csv"])
def test_a_detectors_boxes_are_added(plain, tmp_path, kind):
  table = _write(tmp_path, kind)
  output = tmp_path / "with" / "1.0.0"
  flags = ("--min_score=0.3", "--max_boxes=2", "--json")
  status, said, error = _add(plain, table, output, *flags)
  assert status == 0, error
  counts = json.loads(said)
  assert counts == {
    "rows": 9,
    "images": 4,
    "images with boxes": 2,
    "boxes": 3,
    "below the score": 1,
    "beyond --max_boxes": 1,
    "of no image": 1,
    "refused: upside down": 1,
    "refused: outside the image": 1,
    "refused: no text": 1,
  }
  assert json.loads((output / "boxes_summary.json").read_text()) == counts
  report = (output / "boxes_report.jsonl").read_text().splitlines()
  told = {(r["image"], r["reason"]) for r in map(json.loads, report)}
  assert told == {
    ("a/1.jpg", "upside down"),
    ("a/1.jpg", "outside the image"),
    ("a/1.jpg", "no text"),
    ("c/9.jpg", "names no image"),
  }
  fields = ("boxes", "box_texts", "box_scores")
  options = Options(fields=fields)
  source = sources.open_source("tfds", "train", str(output), options)
  assert [example.name for example in source] == list(NAMES[:3])
  # All else is as it was, to the byte.
  before = sources.open_source("tfds", "train", str(plain))
  for one, two in zip(source, before, strict=True):
    assert one.image == two.image and one.texts == two.texts
  found = Reader()(source[0].fields, HEIGHT, WIDTH)
  assert found.texts == ("a dog", "a ball"), "the best two, in their order"
  np.testing.assert_allclose(
    found.boxes, [[0.1, 0.1, 0.6, 0.6], [0.5, 0.5, 1, 1]], atol=1e-6
  )
  scores = np.asarray(source[0].fields["box_scores"])
  np.testing.assert_allclose(scores, [0.9, 0.7], rtol=1e-6)
  for i in (1, 2):
    assert not len(Reader()(source[i].fields, HEIGHT, WIDTH))
  test = sources.open_source("tfds", "test", str(output), options)
  assert Reader()(test[0].fields, HEIGHT, WIDTH).texts == ("a cat",)


def test_it_says_what_it_did(plain, tmp_path):
  table = _write(tmp_path, "csv")
  status, said, _ = _add(plain, table, tmp_path / "new")
  assert status == 0
  assert "4 images, 3 with boxes, 5 boxes" in said
  assert "1 refused: upside down" in said and "1 of no image" in said
  again = programs.said_in_one_line(
    *("tools/prepare.py", "boxes", tmp_path / "new", f"--table={table}"),
    *("--box_format=xyxy", f"--output={tmp_path / 'other'}"),
  )
  assert "has boxes, box_texts, box_scores already" in again


@pytest.mark.parametrize(
  "flags, said",
  [
    ([], "--table=FILE must be given"),
    (["--table={table}"], "--box_format=yxyx|xyxy|xywh must be given"),
    (["--table={table}", "--box_format=xxyy"], "--box_format"),
    (
      ["--table={table}", "--box_format=xyxy", "--max_boxes=0"],
      "--max_boxes=0: must be at least 1",
    ),
    (
      ["--table={table}", "--box_format=xyxy", "--columns=photo"],
      "--columns: {table} has no photo; it has image, xmin",
    ),
    (["--table={table}", "--box_format=xywh"], "no column of the box"),
    (["--table={other}", "--box_format=yxyx"], "names no image of"),
    (
      ["--table={other}", "--box_format=yxyx", "--min_score=0.5"],
      "has no column of scores",
    ),
    (["--table=nowhere.csv", "--box_format=yxyx"], "nowhere.csv"),
  ],
)
def test_mistakes_are_one_line(plain, tmp_path, flags, said):
  table = _write(tmp_path, "csv")
  other = tmp_path / "other.jsonl"
  other.write_text(
    json.dumps({"image": "no", "box": [0, 0, 1, 1], "text": "a dog"})
  )
  names = {"table": table, "other": other}
  line = programs.said_in_one_line(
    *("tools/prepare.py", "boxes", plain, f"--output={tmp_path / 'out'}"),
    *(flag.format(**names) for flag in flags),
  )
  assert said.format(**names) in line
  assert not list(tmp_path.glob("out*"))


def test_the_data_set_must_be_one(tmp_path):
  table = _write(tmp_path, "csv")
  line = programs.said_in_one_line(
    *("tools/prepare.py", "boxes", tmp_path, f"--table={table}"),
    *("--box_format=xyxy", f"--output={tmp_path / 'out'}"),
  )
  assert "no prepared TFDS data set lies there" in line
  assert "config.data" not in line


def test_damaged_records_are_left_out(plain, tmp_path):
  """And counted; the split is one shorter."""
  folder = tmp_path / "1.0.0"
  shutil.copytree(plain, folder)
  (shard,) = folder.glob("*test*")
  (record,) = ArrayRecordReader(str(shard)).read_all()
  writer = ArrayRecordWriter(str(shard), "group_size:1")
  for data in (b"\xff no example", record):
    writer.write(data)
  writer.close()
  file = folder / "dataset_info.json"
  info = json.loads(file.read_text())
  (split,) = (s for s in info["splits"] if s["name"] == "test")
  split["shardLengths"] = ["2"]
  file.write_text(json.dumps(info))
  output = tmp_path / "with"
  status, said, error = _add(folder, _write(tmp_path, "csv"), output, "--json")
  assert status == 0, error
  counts = json.loads(said)
  assert counts["damaged records"] == 1 and counts["images"] == 4
  test = sources.open_source("tfds", "test", str(output))
  assert [example.name for example in test] == ["b/3.jpg"]
