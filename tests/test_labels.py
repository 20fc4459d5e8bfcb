"""Labels of all formats, and what files of names call them.

Each data set has pictures of one colour, which says what their label is.
"""

import csv
import functools
import io
import json
import logging
import tarfile

import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs

from big_siglip.data import class_files
from big_siglip.data.preprocessing import Preprocess, Preprocessing
from big_siglip.datasets import digits
from big_siglip.errors import UserError
from big_siglip.evaluators import Embedders, make_evaluator
from big_siglip.evaluators.classes import merge_equal, read_classes
from big_siglip.training_data import evaluation_source
from configs import base

NAMES = digits.CLASS_NAMES
DIGITS = (3, 9, 0, 1, 2, 4, 5, 6, 7, 8, 3)
PREPROCESS = Preprocess.of(
  Preprocessing(4, "bilinear", 12, "bytes", True, "none", 1)
)


def picture(digit):
  buffer = io.BytesIO()
  Image.new("RGB", (4, 4), (20 * digit, 0, 0)).save(buffer, "PNG")
  return buffer.getvalue()


def write_folder(folder, rows):
  """Writes captions.csv of rows, each with a digit in the end."""
  header, *rows = rows
  for number, (*_, digit) in enumerate(rows):
    (folder / f"{number}.png").write_bytes(picture(digit))
  with (folder / "captions.csv").open("w", newline="") as file:
    csv.writer(file).writerows([header, *(row[:-1] for row in rows)])
  return dict(data="folder", split="all", path=str(folder))


def write_parquet(folder, labels):
  columns = {
    "image": [picture(digit) for digit in DIGITS],
    "caption": ["a digit"] * len(DIGITS),
    "label": labels,
  }
  pq.write_table(pa.table(columns), folder / "a.parquet")
  return dict(data="parquet", split="all", path=str(folder))


def write_tar(folder, labels):
  with tarfile.open(folder / "0.tar", "w") as file:
    for number, (digit, label) in enumerate(zip(DIGITS, labels, strict=True)):
      for extension, data in (
        ("png", picture(digit)),
        ("txt", b"a digit"),
        ("cls", str(label).encode()),
      ):
        member = tarfile.TarInfo(f"{number}.{extension}")
        member.size = len(data)
        file.addfile(member, io.BytesIO(data))
  return dict(data="tar", split="all", path=str(folder / "0.tar"))


def write_names(folder, content, name="names.json"):
  text = content if isinstance(content, str) else json.dumps(content)
  (folder / name).write_text(text)
  return str(folder / name)


def open_evaluator(changes=(), **section):
  """Returns the evaluator of a section, of a run with some of config.data."""
  config = base.get_config()
  config.data.update(dict(changes))
  config.evals.named = base.classification(**section)
  return make_evaluator(
    config.evals.named,
    open_split=functools.partial(evaluation_source, config, "named"),
    preprocess=PREPROCESS,
    embedders=Embedders(None, None, None, None, 1),
  )


def right_names(changes=(), **section):
  """Returns what the evaluator takes for right of each digit."""
  evaluator, found = open_evaluator(changes, **section), {}
  for batch in evaluator.images.batches():
    for image, answers, good in zip(
      batch["image"], batch["answers"], batch["mask"], strict=True
    ):
      if good:
        digit = round(int(image[0, 0, 0]) / 20)
        name = evaluator.names[answers[0]] if answers[0] >= 0 else None
        assert found.setdefault(digit, name) == name
  return found


def every(digits=range(10)):
  return {digit: NAMES[digit] for digit in digits}


@pytest.mark.parametrize("form", ["{}", "{:02}", "{}.0"])
@pytest.mark.parametrize("first", [0, 1])
def test_names_in_order_belong_to_labels_in_order_of_numbers(
  first, form, tmp_path
):
  rows = [
    (f"{i}.png", "a digit", form.format(d + first), d)
    for i, d in enumerate(DIGITS)
  ]
  section = write_folder(tmp_path, [("image", "caption", "label"), *rows])
  names = write_names(tmp_path, "\n".join(NAMES), "names.txt")
  got = right_names(**section, label_key="label", classes_file=names)
  assert got == every()


@pytest.mark.parametrize("write", [write_parquet, write_tar])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kind", ["list", "object", "table"])
def test_integer_labels_of_any_format_are_named_by_a_file(
  write, first, kind, tmp_path
):
  section = write(tmp_path, [digit + first for digit in DIGITS])
  content, name = {
    "list": (NAMES, "a.json"),
    "object": ({str(i + first): n for i, n in enumerate(NAMES)}, "a.json"),
    "table": (
      "id;label\n" + "".join(f"{i + first};{n}\n" for i, n in enumerate(NAMES)),
      "a.csv",
    ),
  }[kind]
  file = write_names(tmp_path, content, name)
  assert right_names(**section, classes_file=file) == every()


def test_labels_that_are_left_out_of_an_object_or_are_secret(tmp_path):
  section = write_parquet(tmp_path, [-1 if d == 9 else d for d in DIGITS])
  file = write_names(tmp_path, {str(i): NAMES[i] for i in range(9) if i != 4})
  got = right_names(**section, classes_file=file)
  assert got == every() | {9: None, 4: None}


def test_numbers_without_names_are_refused_with_the_way_out(tmp_path):
  section = write_parquet(tmp_path, list(DIGITS))
  with pytest.raises(UserError) as error:
    open_evaluator(**section)
  said = str(error.value)
  assert "label_key='label': its labels are numbers, 0 ... 9" in said
  assert "classes_file must name them" in said
  assert "image, caption, label" in said


def test_a_label_is_found_by_its_name_and_said(tmp_path, caplog):
  rows = [(f"{i}.png", "a digit", NAMES[d], d) for i, d in enumerate(DIGITS)]
  section = write_folder(tmp_path, [("image", "caption", "label"), *rows])
  with caplog.at_level(logging.WARNING):
    assert right_names(**section) == every()
  assert "evals.named.label_key=None: 'label' is taken" in caplog.text


def test_no_label_is_told_with_the_fields_that_there_are(tmp_path):
  section = write_folder(
    tmp_path, [("image", "caption", "shape"), ("0.png", "a", "round", 1)]
  )
  with pytest.raises(UserError) as error:
    open_evaluator(**section)
  assert "among caption, shape: set label_key, or answers_file" in str(
    error.value
  )


def test_a_section_keeps_the_fields_of_the_run_and_may_set_its_own(tmp_path):
  rows = [(f"{i}.png", "a digit", NAMES[d], d) for i, d in enumerate(DIGITS)]
  section = write_folder(tmp_path, [("file_name", "text", "word"), *rows])
  section["label_key"] = "word"
  of_run = {"image_key": "file_name", "text_keys": ("text",)}
  assert right_names(of_run, **section) == every()
  own = dict(image_key="file_name", text_keys=("text",))
  assert right_names(**section, **own) == every()
  other = {"image_key": "picture", "text_keys": ("words",)}
  assert right_names(other, **section, **own) == every()
  assert right_names(**section) == every()  # Found by their names.


def test_equal_names_are_one_class(tmp_path, caplog):
  section = write_parquet(tmp_path, list(DIGITS))
  names = [*NAMES[:9], "Three"]
  file = write_names(tmp_path, names)
  with caplog.at_level(logging.WARNING):
    evaluator = open_evaluator(**section, classes_file=file)
  assert evaluator.names == NAMES[:9]
  assert "count as the same: Three" in caplog.text
  assert right_names(**section, classes_file=file) == every() | {9: "three"}


WORDS = tuple(sorted(NAMES))


@pytest.mark.parametrize("labels", [WORDS, tuple(w.upper() for w in WORDS)])
@pytest.mark.parametrize("kind", ["list", "index", "keyed"])
def test_names_that_are_labels_are_matched_by_name(labels, kind, tmp_path):
  content = {
    "list": NAMES,
    "index": {name: i for i, name in enumerate(NAMES)},  # class_to_idx
    "keyed": {str(i): name for i, name in enumerate(NAMES)},  # id2label
  }[kind]
  classes = read_classes(write_names(tmp_path, content), labels)
  for index, label in enumerate(labels):
    assert classes.names[classes.of_index[index]] == (label.lower(),)
    assert classes.of_index[index] == classes.of_label[label]


def test_what_was_matched_is_said(tmp_path, caplog):
  file = write_names(tmp_path, "\n".join(NAMES), "a.txt")
  labels = tuple(str(i) for i in range(1, 11))
  with caplog.at_level(logging.WARNING):
    read_classes(file, labels)
  assert (
    f"classes_file={file!r}: 10 classes for 10 labels, in the order of the "
    "numbers: '1' is 'zero' ... '10' is 'nine'" in caplog.text
  )


@pytest.mark.parametrize(
  ("content", "labels", "said"),
  [
    (NAMES, map(str, range(1, 10)), "1 ... 9 of 10: is the first 0 or 1?"),
    (NAMES, map(str, range(11)), "a name for each of the 11 labels"),
    ({str(i + 1): n for i, n in enumerate(NAMES)}, map(str, range(10)),
     "'10'; it lacks '0'; the data set's are '0' ... '9'"),
    (NAMES[:9] + ("ten",), WORDS, "and 'zero' is a label too"),
    (NAMES + ("ten",), WORDS, "has 1 labels that the data set does not have"),
    ({"a": "x", "b": "y"}, ("a", "c"), "'b'; it lacks 'c'"),
  ],
)  # fmt: skip
def test_a_doubtful_match_is_refused(content, labels, said, tmp_path):
  with pytest.raises(UserError) as error:
    read_classes(write_names(tmp_path, content), tuple(labels))
  assert said in str(error.value)
  assert len(str(error.value).splitlines()) == 1


TWO = (("tench",), ("gold fish",))


@pytest.mark.parametrize(
  ("name", "text", "names", "labels"),
  [
    ("a.txt", "tench\n\n gold fish \n", TWO, ()),
    ("a.names", "\ufefftench\r\ngold fish\r\n", TWO, ()),
    ("a.json", '["tench", "gold fish"]', TWO, ()),
    ("a.txt", '["tench", "gold fish"]', TWO, ()),
    ("a.txt", "{0: 'tench', 1: 'gold fish'}", TWO, (("0", "1"),)),
    ("a.json", '{"x": "tench", "y": "gold fish"}', TWO, (("x", "y"),)),
    ("a.json", '{"id2label": {"0": "tench", "1": "gold fish"}, "a": 1}', TWO,
     (("0", "1"),)),
    ("a.json", '{"gold fish": 1, "tench": 0}', TWO, (("0", "1"),)),
    ("a.json", '{"0": ["n01440764", "tench"], "1": ["n01443537", "gold_fish"]}',
     TWO, (("0", "1"), ("n01440764", "n01443537"))),
    ("a.json", '{"categories": [{"id": 7, "name": "tench", "of": "fish"}, '
     '{"id": 9, "name": "gold fish", "of": "fish"}]}', TWO, (("7", "9"),)),
    ("a.jsonl", '{"id": 0, "name": "tench"}\n{"id": 1, "name": "gold fish"}',
     TWO, (("0", "1"),)),
    ("a.csv", "id,label\n0,tench\n1,gold fish\n", TWO, (("0", "1"),)),
    ("a.txt", "id,label\n0,tench\n1,gold fish\n", TWO, (("0", "1"),)),
    ("a.csv", "wnid;index;name\nn01440764;0;tench\nn01443537;1;gold fish\n",
     TWO, (("n01440764", "n01443537"), ("0", "1"))),
    ("a.csv", "0,tench\n1,gold fish\n", TWO, (("0", "1"),)),
    ("a.csv", "name\ntench\ngold fish\n", TWO, ()),
    ("a.txt", "0\ttench\n1\tgold fish\n", TWO, (("0", "1"),)),
    ("a.txt", "n01440764 tench\nn01443537 gold fish\n", TWO,
     (("n01440764", "n01443537"),)),
    ("a.txt", "cat, tabby\ndog\n", (("cat, tabby",), ("dog",)), ()),
    ("a.json", '[["cat", "tabby"], "dog"]', (("cat", "tabby"), ("dog",)), ()),
    ("a.tsv", '0\t"tench\n1\t5" fish\n', (('"tench',), ('5" fish',)),
     (("0", "1"),)),
  ],
)  # fmt: skip
def test_names_are_read_as_people_keep_them(
  name, text, names, labels, tmp_path
):
  file = write_names(tmp_path, text, name)
  assert class_files.read(file, "x") == (names, labels)


@pytest.mark.parametrize(
  ("name", "text", "said"),
  [
    ("a.yaml", "names: [a, b]", ".yaml is not read: must be text with"),
    ("a.json", '{"a": "x", "a": "y"}', "label 'a' stands there twice"),
    ("a.json", '{"a": null}', "None must be a name or a list of names"),
    ("a.json", "[1, 2]", "1 must be a name"),
    ("a.json", '"tench"', "must be a list of names, or an object"),
    ("a.json", "[" * 100_000, "is nested too deeply"),
    ("a.csv", "0,cat, tabby\n1,dog\n", "line 2: has 2 cells, the first line 3"),
    ("a.csv", "id,name\n0,cat\n1,\n", "row 2: has no name"),
    ("a.csv", "id,index\n0,0\n1,1\n", "must have a column 'name'; it has id"),
    ("a.csv", "id,name\n", "the list is empty"),
    ("a.csv", '0,"cat\n1,dog\n', "line 1: a quote before its text is never"),
  ],
)
def test_what_is_no_list_of_names_is_refused(name, text, said, tmp_path):
  with pytest.raises(UserError) as error:
    class_files.read(write_names(tmp_path, text, name), "x")
  assert str(error.value).startswith("x: ")
  assert said in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_imagenets_classes_belong_to_its_numbers():
  file = str(runs.ROOT / "configs" / "classes" / "imagenet.json")
  classes = read_classes(file, None, range(1000))
  assert classes.names[classes.of_index[999]] == ("toilet paper",)
  merged = merge_equal(classes)
  assert len(merged.names) == 998
  for index in range(1000):
    name = classes.names[classes.of_index[index]]
    assert merged.names[merged.of_index[index]] == name
  assert np.unique(list(merged.of_index.values())).size == 998
