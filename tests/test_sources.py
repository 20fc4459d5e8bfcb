"""Opening data sets, and what is said of those that cannot be opened."""

import csv
import json
import pickle

import fsspec
import numpy as np
from PIL import Image
import pytest

from big_siglip.data import images, sources
from big_siglip.data.sources.held_out import split_of
from big_siglip.errors import UserError

_ROWS = "image,caption\na.png,first\na.png,second\nb.png,third\n"


@pytest.fixture
def folder(tmp_path):
  for name in ("a.png", "images/b.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (2, 2)).save(tmp_path / name)
  (tmp_path / "captions.csv").write_text(_ROWS)
  return tmp_path


def _error(*args):
  with pytest.raises(UserError) as e:
    sources.open_source(*args)
  assert "\n" not in str(e.value)
  return str(e.value)


def test_folder_groups_captions_by_image_in_file_order(folder):
  source = sources.open_source("folder", "all", str(folder))
  assert [e.texts for e in source] == [("first", "second"), ("third",)]
  assert [e.name for e in source] == ["a.png", "images/b.png"]
  assert source.class_names is None and source[0].label is None
  assert images.decode(source[1].image).shape == (2, 2, 3)


def test_jsonl_reads_like_csv(folder):
  expected = list(sources.open_source("folder", "all", str(folder)))
  (folder / "captions.csv").unlink()
  rows = [line.split(",") for line in _ROWS.splitlines()[1:]]
  (folder / "captions.jsonl").write_text(
    "\n".join(json.dumps(dict(image=i, caption=c)) for i, c in rows)
  )
  assert list(sources.open_source("folder", "all", str(folder))) == expected


def test_spreadsheet_csv_with_byte_order_mark_is_read(folder):
  (folder / "captions.csv").write_text(
    '\ufeffimage,caption\r\na.png,"red, and ""big"""\r\n', encoding="utf-8"
  )
  source = sources.open_source("folder", "all", str(folder))
  assert source[0].texts == ('red, and "big"',)


def test_train_and_test_split_a_folder_by_name_alone(folder):
  names = [f"{i}.png" for i in range(200)]
  for name in names:
    (folder / name).write_bytes(name.encode())

  def split_of(order, split):
    rows = "".join(f"{name},caption\n" for name in order)
    (folder / "captions.csv").write_text("image,caption\n" + rows)
    source = sources.open_source("folder", split, str(folder))
    return {source[i].name for i in range(len(source))}

  train, test = split_of(names, "train"), split_of(names, "test")
  assert train | test == set(names) and not train & test
  assert 8 <= len(test) <= 35
  assert split_of(names[::-1], "test") == test
  assert split_of(names[:150], "test") == test & set(names[:150])


@pytest.mark.parametrize("remote", [False, True])
def test_equal_files_are_on_one_side_of_the_split(remote, folder, tmp_path):
  """Twenty images, each under ten names, beside two hundred of their size."""
  names = {}
  for number in range(20):
    # Equal to others at its end, so that it must be read whole.
    data = bytes([number]) * 9 + bytes(2**13)
    names |= {f"{number}-{copy}.png": data for copy in range(10)}
  names |= {f"{i}.png": f"{i:03}".encode() for i in range(200)}
  for name, data in names.items():
    (folder / name).write_bytes(data)
  rows = "".join(f"{name},caption\n" for name in names)
  (folder / "captions.csv").write_text("image,caption\n" + rows)
  path = str(folder)
  if remote:
    fs = fsspec.filesystem("memory")
    path = f"memory://{tmp_path}"
    fs.put(str(folder), path, recursive=True)
  train, test = (
    {source[i].name for i in range(len(source))}
    for source in (
      sources.open_source("folder", split, path) for split in ("train", "test")
    )
  )
  assert train | test == names.keys() and not train & test
  assert not {names[name] for name in train} & {names[name] for name in test}
  # What stands there once is where it was.
  single = {f"{i}.png" for i in range(200)}
  assert test & single == {n for n in single if split_of(n) == "test"}
  assert any(name not in single for name in test)


def test_bad_folders_get_one_line_each(folder):
  path = str(folder)
  csv_file = folder / "captions.csv"
  assert "must be one of all, train, test" in _error("folder", "dev", path)
  assert "no such folder" in _error("folder", "all", path + "/no")
  assert "config.data.path=None" in _error("folder", "all", None)
  csv_file.write_text("image,size\na.png,3\n")
  assert "missing column caption; it has: image, size" in _error(
    "folder", "all", path
  )
  for empty in ("image,caption\n", ""):
    csv_file.write_text(empty)
    assert _error("folder", "all", path)
  assert "it has: none" in _error("folder", "all", path)
  csv_file.write_bytes(b"image,caption\na.png,\xff\xfe\n")
  assert "must be UTF-8" in _error("folder", "all", path)
  (folder / "captions.jsonl").write_text("{}")
  assert "holds several of" in _error("folder", "all", path)
  csv_file.unlink()
  assert "missing column image, caption" in _error("folder", "all", path)
  (folder / "captions.jsonl").write_text("[1]\n")
  assert "line 1: is not a JSON object" in _error("folder", "all", path)
  (folder / "captions.jsonl").unlink()
  assert "must hold one of captions.csv" in _error("folder", "all", path)


def _jsonl(folder, *rows):
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "captions.csv").unlink(missing_ok=True)
  (folder / "captions.jsonl").write_text(lines)


@pytest.mark.parametrize(
  ("second", "said"),
  [
    ({"image": ["b.png"], "caption": "x"}, "line 2: image must be text"),
    ({"image": "b.png", "caption": "x"}, "line 2: kind must not be empty"),
    ({"image": "b.png", "kind": "cat"}, "line 2: caption must be text"),
  ],
)
def test_a_json_row_that_lacks_a_field_is_named(folder, second, said):
  _jsonl(folder, {"image": "a.png", "caption": "x", "kind": "dog"}, second)
  options = sources.Options(label_key="kind")
  assert said in _error("folder", "all", str(folder), options)


def test_a_json_row_may_lack_one_of_several_texts(folder):
  rows = {"image": "a.png", "alt": "one"}, {"image": "b.png", "caption": "two"}
  _jsonl(folder, *rows)
  options = sources.Options(text_keys=("caption", "alt"))
  source = sources.open_source("folder", "all", str(folder), options)
  assert [e.texts for e in source] == [("one",), ("two",)]
  options = sources.Options(text_keys=("caption", "alt", "title"))
  error = _error("folder", "all", str(folder), options)
  assert "missing column title; it has: image, alt, caption" in error


def test_the_image_is_neither_text_nor_label(folder):
  for options, said in (
    (sources.Options(text_keys=("image",)), "config.data.text_keys='image'"),
    (sources.Options(label_key="image"), "config.data.label_key='image'"),
  ):
    assert said in _error("folder", "all", str(folder), options)


def test_labels_of_a_folder_are_texts_by_their_names(folder):
  (folder / "captions.csv").write_text("image,kind\na.png,dog\nb.png,cat\n")
  options = sources.Options(
    text_keys=("kind",), label_key="kind", templates=("a photo of a {}",)
  )
  source = sources.open_source("folder", "all", str(folder), options)
  assert source.class_names == ("cat", "dog")
  assert [(e.label, *e.texts) for e in source] == [
    (1, "a photo of a dog"),
    (0, "a photo of a cat"),
  ]


@pytest.mark.parametrize("text", ["one\nb.png,two\n", 140_000 * "x" + "\n"])
def test_a_quote_that_is_never_closed_is_told(folder, text):
  (folder / "captions.csv").write_text(f'image,caption\na.png,"{text}')
  assert "quote" in _error("folder", "all", str(folder))
  (folder / "captions.csv").write_text('image,caption\na.png,"5"" x\ny"\n')
  source = sources.open_source("folder", "all", str(folder))
  assert source[0].texts == ('5" x\ny',)


def test_captions_may_be_as_long_as_they_like(folder):
  csv.field_size_limit(131_072)  # As a process starts.
  (folder / "captions.csv").write_text(
    f"image,caption\na.png,{'x' * 200_000}\n"
  )
  (example,) = sources.open_source("folder", "all", str(folder))
  assert len(example.texts[0]) == 200_000
  (folder / "captions.csv").unlink()
  (folder / "captions.jsonl").write_text("[" * 100_000)
  assert "line 1: is not a JSON object" in _error("folder", "all", str(folder))


def test_all_bad_rows_are_counted_and_the_first_is_shown(folder):
  (folder / "captions.csv").write_text(
    _ROWS + "c.png,x\nc.png,y\na.png,\na.png,one, two\n"
  )
  error = _error("folder", "all", str(folder))
  assert "captions.csv line 5: no image 'c.png'" in error
  assert "(4 bad rows in all)" in error
  (folder / "captions.csv").write_text(_ROWS + "a.png,one, two\n")
  assert "quote captions that hold commas" in _error(
    "folder", "all", str(folder)
  )


def test_unknown_names_and_splits_list_what_there_is(tmp_path):
  for name in ("imagenet", "scenes/x", "scenes/0", "digits/3"):
    error = _error(name, "train", str(tmp_path))
    assert f"{name!r}: must be one of digits, scenes" in error
    assert "folder" in error
  error = _error("digits", "validation", str(tmp_path))
  assert "config.data.split='validation': must be one of" in error
  assert "train" in error and "test" in error


def test_unwritable_data_folder_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  error = _error("digits", "train", str(tmp_path / "file"))
  assert "config.data.path=" in error and "cannot write" in error


def test_sources_read_the_same_after_pickling(folder, tmp_path):
  for source in (
    sources.open_source("folder", "all", str(folder)),
    sources.open_source("digits", "test", str(tmp_path / "data")),
  ):
    first = source[0]  # Opens its files.
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0] == first and len(copy) == len(source)
    assert copy.class_names == source.class_names


def test_flickr_photos_open_with_five_captions_each(shared_data):
  source = sources.open_source("folder", "all", str(shared_data / "flickr1k"))
  assert len(source) == 800
  assert all(len(source[i].texts) == 5 for i in range(800))
  assert np.ptp(images.decode(source[799].image)) > 100
