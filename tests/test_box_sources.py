"""Boxes from every source: TFDS, folders, Parquet, tar, tf.train.Example."""

import dataclasses
import io
import json
import tarfile

import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from big_siglip.data import sources
from big_siglip.data.box_reading import Reader
from big_siglip.data.boxes import BadBoxes
from big_siglip.data.sources import Options
from big_siglip.datasets import scenes_draw
from big_siglip.errors import UserError

SIZE = HEIGHT, WIDTH = 40, 80
# What COCO says of three images, in pixels (xywh); the last has none.
BOXES = ([[8, 4, 16, 20], [0, 0, 80, 40]], [[40, 10, 40, 30]], [])
TEXTS = (["a dog", "a lawn"], ["a cat"], [])
FRACTIONS = (
  [[0.1, 0.1, 0.6, 0.3], [0, 0, 1, 1]],
  [[0.25, 0.5, 1, 1]],
  np.zeros((0, 4)),
)
OPTIONS = Options(fields=("boxes", "box_texts"))


def _png(number):
  file = io.BytesIO()
  Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(file, "png")
  return file.getvalue()


def _check(source, reader, texts=TEXTS):
  assert len(source) == 3
  for i in range(3):
    found = reader(source[i].fields, *SIZE)
    np.testing.assert_allclose(found.boxes, FRACTIONS[i], atol=1e-6)
    assert list(found.texts) == list(texts[i])


def _images(folder):
  for i in range(3):
    (folder / f"{i}.png").write_bytes(_png(i))


def test_scenes_have_boxes(tmp_path_factory):
  pytest.importorskip("tensorflow_datasets")
  folder = str(tmp_path_factory.getbasetemp() / "box_scenes")
  source = sources.open_source("scenes/20", "train", folder, OPTIONS)
  for i in range(20):
    painted = scenes_draw.train_example(i)
    found = Reader()(source[i].fields, 64, 64)
    np.testing.assert_array_equal(found.boxes, np.float32(painted.boxes))
    assert found.texts == painted.box_texts
    for text in found.texts:  # Each is a part of what the caption says.
      assert text in painted.caption


def test_a_tfds_with_objects_as_coco_has_them(tmp_path):
  """objects/bbox, and objects/label, whose numbers have names."""
  tfds = pytest.importorskip("tensorflow_datasets")
  names = ["a cat", "a dog", "a lawn"]
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(encoding_format="png"),
      "caption": tfds.features.Text(),
      "objects": tfds.features.Sequence(
        {
          "bbox": tfds.features.BBoxFeature(),
          "label": tfds.features.ClassLabel(names=names),
        }
      ),
    }
  )
  file = tfds.core.FileFormat.ARRAY_RECORD
  version = tfds.core.Version("1.0.0")
  identity = tfds.core.dataset_info.DatasetIdentity(
    name="toy", version=version, data_dir=str(tmp_path), module_name="toy"
  )
  writer = tfds.core.SequentialWriter(
    tfds.core.DatasetInfo(builder=identity, features=features),
    10,
    file_format=file,
  )
  writer.initialize_splits(["train"])
  examples = [
    {
      "image": _png(i),
      "caption": "all",
      "objects": [
        {"bbox": tfds.features.BBox(*map(float, box)), "label": text}
        for box, text in zip(FRACTIONS[i], TEXTS[i], strict=True)
      ],
    }
    for i in range(3)
  ]
  writer.add_examples({"train": examples})
  writer.close_all()
  data = {
    "name": "tfds",
    "fields": ("objects/bbox", "objects/label"),
    "boxes": {
      "key": "objects/bbox",
      "text_key": "objects/label",
      "format": "yxyx",
    },
  }
  source = sources.open_source("tfds", "train", str(tmp_path), Options.of(data))
  _check(source, Reader.of(data, "a test"))


def test_a_table_with_lists_of_boxes(tmp_path):
  _images(tmp_path)
  rows = [
    {"image": f"{i}.png", "caption": c, "boxes": b, "box_texts": t}
    for i, (b, t) in enumerate(zip(BOXES, TEXTS, strict=True))
    for c in ("one", "two")  # Each caption repeats the boxes.
  ]
  (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  source = sources.open_source("folder", "all", str(tmp_path), OPTIONS)
  _check(source, Reader(format="xywh"))
  assert source[0].texts == ("one", "two")
  (tmp_path / "captions.jsonl").unlink()
  with (tmp_path / "captions.csv").open("w") as file:
    print("image\tcaption\tboxes\tbox_texts", file=file)
    for row in rows:
      values = json.dumps(row["boxes"]), json.dumps(row["box_texts"])
      print(row["image"], row["caption"], *values, sep="\t", file=file)
  source = sources.open_source("folder", "all", str(tmp_path), OPTIONS)
  _check(source, Reader(format="xywh"))


@pytest.mark.parametrize("between", [" ", ", ", "json"])
def test_a_table_with_a_row_for_each_box(tmp_path, between):
  _images(tmp_path)
  lines = ["image\tcaption\tplace\twhat"]
  for i, (boxes, texts) in enumerate(zip(BOXES, TEXTS, strict=True)):
    for box, text in zip(boxes or [""], texts or [""], strict=True):
      cell = json.dumps(box) if between == "json" and box else ""
      cell = cell or between.join(map(str, box))
      lines += 2 * [f"{i}.png\tall\t{cell}\t{text}"]  # What is said twice.
  (tmp_path / "captions.tsv").write_text("\n".join(lines))
  data = {
    "fields": ("place", "what"),
    "boxes": {"key": "place", "text_key": "what", "format": "xywh"},
  }
  source = sources.open_source("folder", "all", str(tmp_path), Options.of(data))
  _check(source, Reader.of(data, "a test"))


def _coco(folder):
  (folder / "annotations").mkdir()
  (folder / "val2017").mkdir()
  for i in range(3):
    (folder / "val2017" / f"{i}.png").write_bytes(_png(i))
  images = [
    {"id": 7 + i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH}
    for i in range(3)
  ]
  captions = [{"image_id": 7 + i, "caption": f"all {i}"} for i in range(3)]
  names = {"a cat": 3, "a dog": 5, "a lawn": 90}
  notes = [
    {"image_id": 7 + i, "bbox": box, "category_id": names[text], "iscrowd": 0}
    for i in range(3)
    for box, text in zip(BOXES[i], TEXTS[i], strict=True)
  ]
  crowd = {"image_id": 9, "bbox": [0, 0, 9, 9], "category_id": 3, "iscrowd": 1}
  categories = [{"id": n, "name": name} for name, n in names.items()]
  for name, content in (
    ("captions", {"images": images, "annotations": captions}),
    (
      "instances",
      {
        "images": images,
        "annotations": [*notes, crowd],
        "categories": categories,
      },
    ),
  ):
    file = folder / "annotations" / f"{name}_val2017.json"
    file.write_text(json.dumps(content))


def test_coco_has_boxes_in_a_file_beside_its_captions(tmp_path):
  _coco(tmp_path)
  source = sources.open_source("folder", "all", str(tmp_path), OPTIONS)
  _check(source, Reader(format="xywh"))
  assert source[1].texts == ("all 1",)
  plain = sources.open_source("folder", "all", str(tmp_path))
  assert "boxes" not in plain.field_names, "read where it is asked for"
  # Boxes alone, for an evaluation that needs no captions.
  options = Options(fields=OPTIONS.fields, needs_texts=False)
  path = str(tmp_path / "annotations" / "instances_val2017.json")
  _check(
    sources.open_source("folder", "all", path, options), Reader(format="xywh")
  )
  (tmp_path / "annotations" / "instances_val2017.json").unlink()
  with pytest.raises(UserError, match="missing column boxes, box_texts"):
    sources.open_source("folder", "all", str(tmp_path), OPTIONS)


OBJECT = """<object><name>{name}</name><pose>Left</pose>{more}
<bndbox><ymax>{bottom}</ymax><xmin>{left}</xmin><ymin>{top}</ymin>
<xmax>{right}</xmax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"""
DIFFICULT = "<truncated>1</truncated><difficult>1</difficult>"
TRUNCATED = "<truncated>1</truncated><difficult>0</difficult>"


def _voc(folder, notes="Annotations", shown="JPEGImages"):
  """The same three images; VOC counts from 1, and holds the last pixel."""
  for name in (notes, shown):
    (folder / name).mkdir()
  for i, (boxes, texts) in enumerate(zip(BOXES, TEXTS, strict=True)):
    (folder / shown / f"{i}.png").write_bytes(_png(i))
    objects = [
      OBJECT.format(
        name=text,
        more=TRUNCATED,
        left=x + 1,
        top=y + 1,
        right=f" {x + w}.0 ",
        bottom=y + h,
      )
      for (x, y, w, h), text in zip(boxes, texts, strict=True)
    ]
    far = dict(name="a far cow", left=1, top=1, right=2, bottom=2)
    objects.append(OBJECT.format(more=DIFFICULT, **far))
    text = "".join(objects)
    (folder / notes / f"{i}.xml").write_text(
      f"<annotation><filename>any</filename>{text}</annotation>"
    )


@pytest.mark.parametrize(
  "names", [("Annotations", "JPEGImages"), ("annotations", "images")]
)
def test_pascal_voc_has_an_xml_file_of_each_image(tmp_path, names):
  _voc(tmp_path, *names)
  source = sources.open_source("folder", "all", str(tmp_path), OPTIONS)
  _check(source, Reader(format="xyxy"))
  assert source[0].texts == ("a dog", "a lawn", "a far cow")
  assert source[2].texts == ("a far cow",)
  # The last row and column of pixels belong to the box.
  assert source[0].fields["boxes"][1] == [0, 0, WIDTH, HEIGHT]


def test_pascal_voc_names_its_splits_and_may_have_masks(tmp_path):
  _voc(tmp_path)
  sets = tmp_path / "ImageSets" / "Main"
  sets.mkdir(parents=True)
  (sets / "train.txt").write_text("0\n2\n")
  (sets / "val.txt").write_text("1\n")
  (sets / "trainval.txt").write_text("0\n1\n2\n")
  (sets / "cow_train.txt").write_text("0 -1\n2  1\n")
  masks = tmp_path / "SegmentationClass"
  masks.mkdir()
  (masks / "1.png").write_bytes(_png(1))
  for split, numbers in (("train", [0, 2]), ("validation", [1])):
    source = sources.open_source("folder", split, str(tmp_path), OPTIONS)
    assert [len(source[i].fields["boxes"]) for i in range(len(source))] == [
      len(BOXES[number]) for number in numbers
    ]
  with pytest.raises(UserError, match="must be one of all, train, val"):
    sources.open_source("folder", "test", str(tmp_path), OPTIONS)


BOMB = """<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.mark.parametrize(
  ("content", "said"),
  [
    ("<annotation><object>", "is no XML that is read (no element found: line"),
    (BOMB, "is no XML that is read (has a DOCTYPE (x), which is not read)"),
    (
      '<?xml version="1.0" encoding="none-such"?><annotation/>',
      "is no XML that is read (",
    ),
    (
      "<annotation><object><name>a</name></object></annotation>",
      "object 1 has no bndbox",
    ),
  ],
)
def test_an_annotation_that_is_broken_is_counted_with_its_place(
  tmp_path, content, said
):
  _voc(tmp_path)
  (tmp_path / "Annotations" / "1.xml").write_text(content)
  options = dataclasses.replace(OPTIONS, max_skipped=0.4)
  source = sources.open_source("folder", "all", str(tmp_path), options)
  assert len(source) == 2
  (fault,) = source.faults
  assert fault.reason.startswith(
    f"1 of 3 rows cannot be used: {tmp_path}: Annotations/1.xml: {said}"
  )


def test_boxes_of_voc_that_cannot_be_are_told_of_their_example(tmp_path):
  _voc(tmp_path)
  file = tmp_path / "Annotations" / "1.xml"
  whole = file.read_text()
  for old, new, said in (
    ("<ymax>40</ymax>", "<ymax>5</ymax>", "upside down"),
    ("<xmin>41</xmin>", "<xmin>?</xmin>", "no number"),
    ("<xmin>41</xmin>", "", "no number"),
    ("<name>a cat</name>", "<name> </name>", "no text"),
    ("<ymax>40</ymax>", "<ymax>400</ymax>", "outside the image"),
  ):
    assert old in whole
    file.write_text(whole.replace(old, new))
    source = sources.open_source("folder", "all", str(tmp_path), OPTIONS)
    with pytest.raises(BadBoxes, match=said):
      Reader(format="xyxy")(source[1].fields, *SIZE)


def test_json_beside_images_and_in_tar_shards(tmp_path):
  """As img2dataset's files, and WebDataset's members."""
  (tmp_path / "files").mkdir()
  with tarfile.open(tmp_path / "a.tar", "w") as tar:
    for i in range(3):
      said = json.dumps({"boxes": BOXES[i], "box_texts": TEXTS[i]}).encode()
      for end, data in (("png", _png(i)), ("txt", b"all"), ("json", said)):
        (tmp_path / "files" / f"{i}.{end}").write_bytes(data)
        info = tarfile.TarInfo(f"{i}.{end}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  for name, path in (("folder", "files"), ("tar", "a.tar")):
    source = sources.open_source(name, "all", str(tmp_path / path), OPTIONS)
    _check(source, Reader(format="xywh"))
    assert source[0].texts == ("all",)


@pytest.mark.parametrize("kind", ["Sequence", "List", "list"])
def test_parquet_as_the_hub_has_objects(tmp_path, kind):
  """{bbox, category}, whose numbers the files' metadata name."""
  names = ["a cat", "a dog", "a lawn"]
  rows = [
    {
      "image": {"bytes": _png(i), "path": f"{i}.png"},
      "caption": "all",
      "objects": {
        "bbox": BOXES[i],
        "category": [names.index(t) for t in TEXTS[i]],
      },
    }
    for i in range(3)
  ]
  category = {"names": names, "_type": "ClassLabel"}
  feature = {"bbox": {"_type": "Sequence"}, "category": category}
  features = {
    "Sequence": {"feature": feature, "_type": "Sequence"},
    "List": {"feature": feature, "_type": "List"},
    "list": [feature],
  }
  info = {"info": {"features": {"objects": features[kind]}}}
  table = pa.Table.from_pylist(rows)
  table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
  pq.write_table(table, tmp_path / "a.parquet")
  data = {
    "fields": ("objects/bbox", "objects/category"),
    "boxes": {
      "key": "objects/bbox",
      "text_key": "objects/category",
      "format": "xywh",
    },
  }
  options = Options.of(data)
  path = str(tmp_path / "a.parquet")
  source = sources.open_source("parquet", "all", path, options)
  assert source.label_key is None, "a nested label is none of the image"
  _check(source, Reader.of(data, "a test"))


def test_parquet_with_a_list_of_objects(tmp_path):
  rows = [
    {
      "image": _png(i),
      "caption": "all",
      "objects": [
        {"bbox": b, "text": t} for b, t in zip(BOXES[i], TEXTS[i], strict=True)
      ],
    }
    for i in range(3)
  ]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
  data = {
    "fields": ("objects/bbox", "objects/text"),
    "text_keys": ("caption",),
    "boxes": {
      "key": "objects/bbox",
      "text_key": "objects/text",
      "format": "xywh",
    },
  }
  path = str(tmp_path / "a.parquet")
  source = sources.open_source("parquet", "all", path, Options.of(data))
  _check(source, Reader.of(data, "a test"))


def test_tf_examples_hold_flat_boxes(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2

  writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
  for i in range(3):
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(_png(i))
    feature["caption"].bytes_list.value.append(b"all")
    flat = np.ravel(FRACTIONS[i])
    feature["boxes"].float_list.value.extend(flat)
    texts = [text.encode() for text in TEXTS[i]]
    feature["box_texts"].bytes_list.value.extend(texts)
    writer.write(example.SerializeToString())
  writer.close()
  path = str(tmp_path / "a.array_record")
  options = Options(fields=OPTIONS.fields, text_keys=("caption",))
  source = sources.open_source("arrayrecord", "all", path, options)
  _check(source, Reader())


def test_an_unnamed_class_is_no_text(tmp_path):
  _images(tmp_path)
  row = {"image": "0.png", "caption": "a", "boxes": BOXES[1], "box_texts": [4]}
  (tmp_path / "captions.jsonl").write_text(json.dumps(row))
  source = sources.open_source("folder", "all", str(tmp_path), OPTIONS)
  with pytest.raises(BadBoxes, match="is 4: must be a text, no number"):
    Reader(format="xywh")(source[0].fields, *SIZE)
