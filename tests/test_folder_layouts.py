"""Folders as people lay them out: tables, annotations, files, classes."""

import contextlib
import csv
import io
import json
import random
import unicodedata

import fsspec
import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from big_siglip.data import delimited
from big_siglip.data.first_look import first_look
from big_siglip.data.mixture import Mixture, Subset
from big_siglip.data.sources import open_source, Options
from big_siglip.errors import BadExample, UserError


def fill(folder, files):
  """Writes {name: text, or what is dumped as JSON; None for an image}."""
  for name, content in files.items():
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
      Image.new("RGB", (2, 2)).save(file, "png")
    elif isinstance(content, str):
      file.write_text(content, newline="")
    else:
      file.write_text(json.dumps(content))
  return str(folder)


def opened(folder, split="all", **options):
  """Returns {name: texts} of a folder, or of a table in it."""
  source = open_source("folder", split, str(folder), Options(**options))
  return {example.name: example.texts for example in source}


def refused(folder, split="all", **options):
  with pytest.raises(UserError) as e:
    opened(folder, split, **options)
  assert "\n" not in str(e.value)
  return str(e.value)


def test_a_link_that_leads_round_in_a_ring_is_passed_by(tmp_path):
  folder = fill(
    tmp_path, {"captions.csv": "image,caption\n0.png,a\n", **PHOTOS}
  )
  (tmp_path / "ring").symlink_to(tmp_path / "ring")
  assert opened(folder) == {"0.png": ("a",)}


PHOTOS = {"0.png": None, "1.png": None}
TEXTS = {"0.png": ("a red disc",), "1.png": ("a green disc",)}
IMAGES = [{"id": i, "file_name": f"{i}.png"} for i in range(2)]
NOTES = [
  {"image_id": i, "caption": text} for i, (text,) in enumerate(TEXTS.values())
]
_KARPATHY = [
  {
    "filename": name,
    "filepath": "val2014",
    "split": split,
    "sentences": [{"raw": text} for text in texts],
  }
  for (name, texts), split in zip(
    TEXTS.items(), ("test", "restval"), strict=True
  )
]


@pytest.mark.parametrize(
  "table",
  [
    {"metadata.csv": "file_name,text\n0.png,a red disc\n1.png,a green disc\n"},
    {
      "metadata.jsonl": '{"file_name": "0.png", "text": "a red disc"}\n'
      '{"file_name": "1.png", "text": "a green disc"}\n'
    },
    {"Flickr8k.token.txt": "0.png#0\ta red disc\n1.png#0\ta green disc\n"},
    {
      "captions.tsv": "image\tcaption\n0.png#0\ta red disc\n"
      "1.png#4\ta green disc"
    },
    {
      "results.csv": "image_name| comment_number| comment\n"
      "0.png| 0| a red disc\n1.png| 0| a green disc\n"
    },
    {"list.txt": "0.png|0|a red disc\n1.png|0|a green disc\n"},
    {"pairs.csv": "0.png,a red disc\n1.png,a green disc\n"},
    {"captions.txt": "image,caption\r\n0.png,a red disc\r\n1.png,a green disc"},
    {"excel.csv": "Image;Caption\n0.png;a red disc\n1.png;a green disc\n"},
    {"captions_val2017.json": {"images": IMAGES, "annotations": NOTES}},
    {"annotations/captions_x.json": {"images": IMAGES, "annotations": NOTES}},
    {"dataset_coco.json": {"dataset": "coco", "images": _KARPATHY}},
    {
      "karpathy.json": [
        {"image": name, "caption": list(texts)} for name, texts in TEXTS.items()
      ]
    },
    {
      "lines.json": '{"image": "0.png", "text": "a red disc"}\n'
      '{"image": "1.png", "text": "a green disc"}\n'
    },
    {
      "pandas.json": {
        "image": {str(i): name for i, name in enumerate(TEXTS)},
        "text": {str(i): text for i, (text,) in enumerate(TEXTS.values())},
      }
    },
    {"by_image.json": {name: list(texts) for name, texts in TEXTS.items()}},
    {
      "fr.json": {
        "image_paths": [*TEXTS],
        "annotations": [text for (text,) in TEXTS.values()],
      }
    },
    {"0.txt": "a red disc\n", "1.txt": "a green disc"},
    {
      "0.json": {"caption": "a red disc"},
      "1.json": {"caption": "a green disc"},
    },
    {
      "0.txt": "a red disc",
      "1.txt": "a green disc",
      "0.json": {"caption": "x"},
    },
    {
      "captions.csv": "image,beschreibung\n0.png,a red disc\n1.png,a green disc"
    },
    {"captions.csv": "image,label\n0.png,a red disc\n1.png,a green disc\n"},
  ],
  ids=lambda table: next(iter(table)),
)
@pytest.mark.parametrize("below", ["", "images/", "val2017/"])
def test_each_layout_is_read_by_what_it_holds(tmp_path, table, below):
  if "0.txt" in table or "0.json" in table:
    table = {below + name: content for name, content in table.items()}
  images = {below + name: None for name in PHOTOS}
  folder = fill(tmp_path, images | table)
  assert opened(folder) == {below + k: v for k, v in TEXTS.items()}


def test_a_table_may_be_named_among_several(tmp_path):
  one = "image,caption\n0.png,one\n1.png,one\n"
  fill(tmp_path, PHOTOS | {"a.csv": one, "b.csv": one.replace("one", "two")})
  assert "holds several of a.csv, b.csv; it may name one" in refused(tmp_path)
  assert set(opened(tmp_path / "b.csv").values()) == {("two",)}
  notes = {"images": IMAGES, "annotations": NOTES}
  fill(tmp_path, {"annotations/captions_val.json": notes})
  assert opened(tmp_path / "annotations" / "captions_val.json") == TEXTS


def test_other_files_are_no_tables(tmp_path):
  others = {
    "README.txt": "Photos, by me.",
    "classes.txt": "red\ngreen\n",
    "00000_stats.json": {"count": 2},
    "instances.json": {"images": IMAGES, "annotations": [{"image_id": 0}]},
    "Flickr_8k.testImages.txt": "0.png\n1.png\n",
  }
  fill(tmp_path, PHOTOS | others)
  said = refused(tmp_path)
  assert "must hold one of captions.csv" in said
  assert "2 images, in itself, and 00000_stats.json" in said
  assert "images with sentences" in refused(tmp_path / "instances.json")
  fill(tmp_path, {"0.txt": "one", "1.txt": "two"})
  assert opened(tmp_path) == {"0.png": ("one",), "1.png": ("two",)}


CLASSES = ("n01440764", "n02084071")


@pytest.mark.parametrize("top", ["", "train/", "data/images/"])
def test_folders_are_classes(tmp_path, top):
  names = [f"{top}{kind}/{i}.JPEG" for kind in CLASSES for i in range(3)]
  names.append(f"{top}{CLASSES[0]}/deeper/3.jpg")
  fill(tmp_path, dict.fromkeys(names) | {"words.txt": "n01440764\ttench\n"})
  source = open_source("folder", "all", str(tmp_path))
  assert source.class_names == CLASSES
  assert {e.name: e.label for e in source} == {
    name: CLASSES.index(name.removeprefix(top).split("/")[0]) for name in names
  }
  assert source[0].texts == ("n01440764",)


def test_a_column_may_name_the_split_of_each_row(tmp_path):
  table = "image,caption,split\n0.png,x,train\n1.png,y,validation\n"
  folder = fill(tmp_path, PHOTOS | {"captions.csv": table})
  assert opened(folder, "val") == {"1.png": ("y",)}
  assert "must be one of all, train, val" in refused(folder, "test")


def test_class_folders_have_the_splits_of_their_parents(tmp_path):
  files = [
    f"{split}/{kind}/{i}.jpg"
    for split, count in (("train", 3), ("validation", 2))
    for kind in CLASSES
    for i in range(count)
  ]
  fill(tmp_path, dict.fromkeys(files))
  assert len(opened(tmp_path, "train")) == 6
  assert len(opened(tmp_path, "val")) == len(opened(tmp_path, "valid")) == 4
  assert len(opened(tmp_path)) == 10
  assert "must be one of all, train, val" in refused(tmp_path, "test")
  fill(tmp_path, dict.fromkeys(f"test/{i}.jpg" for i in range(11)))
  assert len(opened(tmp_path, "train")) == 6  # Others' rows do not count.
  assert "lies in no folder of a class" in refused(tmp_path)
  fill(tmp_path / "one", dict.fromkeys(["photos/a.jpg", "photos/b.jpg"]))
  assert "2 images, in photos/" in refused(tmp_path / "one")


def test_splits_that_a_data_set_has_are_taken(tmp_path):
  folder = fill(
    tmp_path / "k", PHOTOS | {"dataset.json": {"images": _KARPATHY}}
  )
  assert opened(folder, "restval") == {"1.png": ("a green disc",)}
  assert "must be one of all, restval, test" in refused(folder, "train")
  hub = {
    f"{split}/{name}": None for split in ("train", "test") for name in PHOTOS
  }
  for split in ("train", "test"):
    rows = f"file_name,text\n0.png,{split} 0\n1.png,{split} 1\n"
    hub[f"{split}/metadata.csv"] = rows
  folder = fill(tmp_path / "hub", hub)
  assert opened(folder, "test") == {
    "test/0.png": ("test 0",),
    "test/1.png": ("test 1",),
  }
  assert len(opened(folder)) == 4
  assert "must be one of all, test, train" in refused(folder, "val")
  rows = {
    f"{s}.csv": f"image,caption\n{i}.png,x"
    for i, s in enumerate(("train", "val"))
  }
  folder = fill(tmp_path / "names", PHOTOS | rows)
  assert list(opened(folder, "val")) == ["1.png"]


@pytest.mark.parametrize(
  ("columns", "row", "texts"),
  [
    ("image,caption_0,caption_1", "0.png,one,two", ("one", "two")),
    ("image,caption,caption2", "0.png,one,two", ("one", "two")),
    ("path,Text 1,Text 2,width", "0.png,one,two,3", ("one", "two")),
    ("image,title,caption", "0.png,one,two", ("two",)),
    ("file,alt_text,page", "0.png,one,two", ("one",)),
    ("image,caption", "0.png,\"['one', 'two']\"", ("one", "two")),
    ("image,raw,split", '0.png,"[""one"", ""two""]",x', ("one", "two")),
    ("image,caption", "0.png,[one]", ("[one]",)),
    ("photo,words", "0.png,one", ("one",)),
    ("image,label,caption", "0.png,x,one", ("one",)),
    ("image,caption,caption", "0.png,one,two", ("one", "two")),
    (",image,caption,caption.1", "0,0.png,one,two", ("one", "two")),
    (",image,width,beschreibung", "0,0.png,3,one", ("one",)),
  ],
)
def test_columns_are_found_by_their_names(tmp_path, columns, row, texts):
  folder = fill(tmp_path, PHOTOS | {"captions.csv": f"{columns}\n{row}\n"})
  assert opened(folder) == {"0.png": texts}


def test_columns_that_are_not_clear_are_listed(tmp_path):
  for columns, row, said in (
    ("image,width", "0.png,3", "missing column caption; it has: image, width"),
    ("image,red,blue", "0.png,a,b", "it has: image, red, blue"),
    (
      "left,right,caption",
      "0.png,1.png,x",
      "several columns name images: left",
    ),
    ("0.png,one,two", "1.png,one,two", "first line must name the columns"),
  ):
    fill(tmp_path, PHOTOS | {"captions.csv": f"{columns}\n{row}\n"})
    assert said in refused(tmp_path)


def test_labels_are_texts_where_nothing_else_is(tmp_path):
  table = "image,label,size\n0.png,dog,3\n1.png,-1,4\n"
  folder = fill(tmp_path, PHOTOS | {"captions.csv": table})
  assert opened(folder) == {"0.png": ("dog",), "1.png": ("-1",)}
  table = "image,kind,caption\n0.png,7,one\n1.png,-1,two\n"
  folder = fill(tmp_path, {"captions.csv": table})
  source = open_source("folder", "all", folder, Options(label_key="kind"))
  assert source.class_names == ("7",)
  assert [(e.label, e.texts) for e in source] == [
    (0, ("one",)),
    (None, ("two",)),
  ]


@pytest.mark.parametrize(
  ("said", "lies"),
  [
    ("shots\\day0\\a.png", "shots/day0/a.png"),
    ("./a.png", "a.png"),
    (" a.png ", "a.png"),
    (
      unicodedata.normalize("NFC", "café.png"),
      unicodedata.normalize("NFD", "café.png"),
    ),
    (
      unicodedata.normalize("NFD", "café.png"),
      unicodedata.normalize("NFC", "café.png"),
    ),
    ("IMG_1.JPG", "img_1.jpg"),
    ("000123", "000123.png"),
    ("day0/a.png", "photos/day0/a.png"),
    ("a.png#3", "b/a.png"),
  ],
)
def test_names_of_images_are_found_as_they_are_meant(tmp_path, said, lies):
  folder = fill(
    tmp_path, {lies: None, "captions.csv": f"image,caption\n{said},x\n"}
  )
  assert opened(folder) == {lies: ("x",)}
  for kind in ("train", "test"):
    fill(tmp_path, {f"{kind}/{lies}": None})
  (tmp_path / lies).unlink()
  assert "2 images could be" in refused(tmp_path)


def test_absolute_paths_of_elsewhere_are_found_by_their_ends(tmp_path):
  for said, lies in (
    ("/home/me/day0/a.png", "day0/a.png"),
    ("C:\\photos\\b.png", "images/b.png"),
  ):
    table = f"image,caption\n{said},x\n"
    folder = fill(tmp_path, {lies: None, "captions.csv": table})
    assert opened(folder) == {lies: ("x",)}
  fill(tmp_path, {"deep/day1/c.png": None})
  fill(tmp_path, {"captions.csv": "image,caption\n/day1/c.png,x\n"})
  assert "no image '/day1/c.png'" in refused(tmp_path)


@pytest.mark.parametrize(
  ("layout", "texts"),
  [
    ({"a/0.png": None, "b/1.png": None}, ("a", "b")),
    ({"0.png": None, "0.txt": "a", "1.png": None, "1.txt": "b"}, ("a", "b")),
    (
      {
        "val/0.png": None,
        "val/1.png": None,
        "list.csv": "image,text\n0.png,a\n1.png,b\n",
      },
      ("a", "b"),
    ),
  ],
)
def test_layouts_are_found_in_remote_storage(tmp_path, layout, texts):
  fill(tmp_path, layout)
  fs = fsspec.filesystem("memory")
  fs.put(str(tmp_path), f"/{tmp_path.name}", recursive=True)
  source = open_source("folder", "all", f"memory://{tmp_path.name}")
  assert tuple(e.texts[0] for e in source) == texts
  assert source[0].image == (tmp_path / source[0].name).read_bytes()


def test_files_of_other_formats_are_named(tmp_path):
  for name in ("train-0.parquet", "0.tar"):
    folder = fill(tmp_path / name, {name: "x", "images/0.png": None})
    kind = name.rpartition(".")[-1]
    assert f"and {name}, which the data set {kind!r} reads" in refused(folder)


def test_numbers_name_images_of_json(tmp_path):
  folder = fill(
    tmp_path, PHOTOS | {"captions.jsonl": '{"image": 0, "text": "x"}'}
  )
  assert opened(folder) == {"0.png": ("x",)}


def photos(count):
  return {f"{i}.png": None for i in range(count)}


def test_missing_images_and_texts_are_skipped_and_counted(tmp_path, caplog):
  rows = "".join(f"{i}.png,text {i}\n" for i in range(6))
  rows = rows.replace("text 4", "")
  folder = fill(
    tmp_path, photos(5) | {"captions.csv": "image,caption\n" + rows}
  )
  source = open_source("folder", "all", folder)
  assert len(source) == 5
  with pytest.raises(BadExample, match="no such file") as e:
    source[4]
  assert e.value.kind == "missing" and e.value.name.endswith("5.png")
  assert "2 of 6 rows cannot be used: " in caplog.text
  assert (
    "captions.csv line 6: caption must be text and not empty" in caplog.text
  )
  every = open_source("folder", "all", folder, Options(captions="all"))
  assert len(every) == 5
  (tmp_path / "0.png").unlink()
  assert "line 2: no image '0.png' in" in refused(folder)
  assert "(3 bad rows in all)" in refused(folder)


def test_urls_are_not_fetched(tmp_path):
  table = "image,caption\nhttps://example.org/0.png,x\n"
  said = refused(fill(tmp_path, {"captions.csv": table}))
  assert (
    "'https://example.org/0.png' is a URL" in said and "img2dataset" in said
  )


@pytest.mark.parametrize("end", ["\n", '"\n', ' 24"\n'])
def test_quotes_are_letters_of_a_tsv(tmp_path, end):
  rows = [f"{i}.png\ttext {i}" for i in range(6)]
  rows[1], rows[4] = '1.png\t"text 1', "4.png\ttext 4" + end.rstrip("\n")
  folder = fill(
    tmp_path, photos(6) | {"captions.tsv": "image\tcaption\n" + "\n".join(rows)}
  )
  found = opened(folder)
  assert len(found) == 6 and found["1.png"] == ('"text 1',)
  assert found["4.png"] == (rows[4].partition("\t")[2],)


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ('0.png,"one\n1.png,two\n', "line 2: a quote before its text is never"),
    ('0.png,"one\n1.png,two"\n', "line 2: a quote before its text is closed"),
    ('0.png,"one\n1.png,"two\n', "(2 bad rows in all)"),
    ('0.png,"a 5" disc, red"\n', "more fields than columns"),
    ('0,"one\n1,two"\n', "line 2: a quote before its text is closed"),
  ],
)
def test_a_text_that_holds_rows_is_a_mistake(tmp_path, text, said):
  folder = fill(tmp_path, PHOTOS | {"captions.csv": "image,caption\n" + text})
  assert said in refused(folder)


def test_quotes_are_read_as_programs_and_people_write_them():
  rows = delimited.read(
    'a,"say ""x"", y"\nb,"say \\"x\\", y"\r\nc,"C:\\"\nd,5" wide\n'
    'e,"5" wide"\nf,"W" said\n\ng, "q, r"\nh,"two\nlines"\ni,z\n'
    'j,5\\" wide',
    ",",
  )
  assert [(row.line, row.cells[1]) for row in rows] == [
    (1, 'say "x", y'),
    (2, 'say "x", y'),
    (3, "C:\\"),
    (4, '5" wide'),
    (5, '5" wide'),
    (6, '"W" said'),
    (8, "q, r"),
    (9, "two\nlines"),
    (11, "z"),
    (12, '5" wide'),
  ]


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_what_csv_writes_is_read_back(delimiter):
  rng = random.Random(delimiter)
  for _ in range(200):
    rows = [
      ["".join(rng.choices("ab\n\" '.,;|", k=rng.randint(1, 8))) for _ in "xyz"]
      for _ in range(4)
    ]
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    found = delimited.read(file.getvalue(), delimiter)
    assert [row.cells for row in found] == rows


def test_lists_of_two_columns_need_no_quotes(tmp_path):
  table = 'image,caption\n0.png,one, two\n1.png,"three"\n'
  folder = fill(tmp_path, PHOTOS | {"flickr30k_test_karpathy.txt": table})
  assert opened(folder) == {"0.png": ("one, two",), "1.png": ("three",)}


def test_the_hubs_parquet_metadata_is_a_table(tmp_path):
  fill(tmp_path, PHOTOS)
  table = pa.table({"file_name": ["0.png", "1.png"], "text": ["one", "two"]})
  pq.write_table(table, tmp_path / "metadata.parquet")
  assert opened(tmp_path) == {"0.png": ("one",), "1.png": ("two",)}


@pytest.mark.parametrize(
  ("name", "line"),
  [
    ("Flickr8k.token.txt", "0.png#0\tone, two | three\n"),
    ("results.csv", "0.png| 0| one, two \t three\n"),
    ("list.csv", "0.png;one, two\n"),
    ("list.tsv", "0.png\tone, two; three\n"),
  ],
)
def test_what_parts_the_cells_is_seen_from_the_image(tmp_path, name, line):
  fill(tmp_path, PHOTOS | {name: line})
  (text,) = opened(tmp_path)["0.png"]
  assert text.startswith("one, two")


def test_names_that_no_file_can_have_are_missing(tmp_path):
  names = ["0.png", "1.png", "a\0b.png", "x" * 5_000 + ".png", "\ud800.png"]
  rows = [json.dumps({"image": name, "caption": "\ud800 x"}) for name in names]
  fill(tmp_path, PHOTOS | {f"{i}.png": None for i in range(2, 9)})
  rows += [json.dumps({"image": f"{i}.png", "caption": "x"}) for i in range(9)]
  fill(tmp_path, {"captions.jsonl": "\n".join(rows)})
  for split in ("all", "train"):
    source = open_source("folder", split, str(tmp_path))
    for index in range(len(source)):
      with contextlib.suppress(BadExample):
        source[index]
  assert len(open_source("folder", "all", str(tmp_path))) == 12
  print("\n".join(first_look(source)).encode())


def test_the_first_look_says_what_was_understood(tmp_path):
  rows = "file_name,text,kind\n0.png,one\x07,dog\n0.png,more,dog\n"
  rows += "1.png,two,cat\n"
  folder = fill(tmp_path, PHOTOS | {"metadata.csv": rows + "2.png,x,dog\n"})
  source = open_source("folder", "all", folder, Options(label_key="kind"))
  about, *lines = first_look(source)
  assert about == (
    f"data: 3 images, 4 captions in {folder}/metadata.csv; image 'file_name',"
    " captions 'text', label 'kind' (2 classes)"
  )
  assert lines[:2] == [
    "  0.png: one? | more, label dog",
    "  1.png: two, label cat",
  ]
  assert "2.png: is skipped: no such file" in lines[2]
  rows = "image,label\n0.png,dog\n1.png,cat\n"
  folder = fill(tmp_path / "b", PHOTOS | {"captions.csv": rows})
  about = first_look(open_source("folder", "all", folder))[0]
  assert about.endswith("; the names of labels are the captions")
  mixed = Mixture(
    {"a": source, "b": Subset(source, np.array([1]))}, dict.fromkeys("ab")
  )
  names = [line for line in first_look(mixed) if line.startswith("data")]
  assert names[0].startswith("data of a: 3 images")
  assert names[1].endswith("; 1 examples without duplicates")
