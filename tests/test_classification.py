"""The zero-shot classifier against a plain loop, and the files it reads."""

import json
import pathlib
import re
import subprocess
import sys

from evaluator_cases import unit
import numpy as np
import pytest
from sklearn import metrics
import tensorflow_datasets as tfds

from big_siglip.data.sources import Example
from big_siglip.errors import UserError
from big_siglip.evaluators.answers import Answers
from big_siglip.evaluators.classes import Classes, read_classes
from big_siglip.evaluators.classification import (
  classifier,
  nearest_classes,
)
from big_siglip.evaluators.prompts import fill_templates, read_templates
from big_siglip.evaluators.scores import classified

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLASSES = ROOT / "configs" / "classes"


def imagenet_labels():
  """Returns the 1,000 names as TFDS lists them."""
  folder = pathlib.Path(tfds.__file__).parent / "datasets" / "imagenet2012"
  return tuple((folder / "labels.txt").read_text().split())


def test_classifier_averages_unit_vectors_and_normalises_again():
  prompts = np.array([[2, 0], [0, 5], [-1, 0], [-3, 0], [0, 2]], np.float32)
  half = 0.5**0.5
  np.testing.assert_allclose(
    classifier(prompts, np.array([0, 0, 1, 1, 2]), 3),
    [[half, half], [-1.0, 0.0], [0.0, 1.0]],
    rtol=1e-6,
  )


def test_nearest_class_equals_a_plain_loop():
  rng = np.random.default_rng(2)
  images = rng.normal(size=(50, 6)).astype(np.float32)
  prompts = rng.normal(size=(5, 3, 6)).astype(np.float32)
  labels = rng.integers(5, size=50)
  classes = classifier(prompts.reshape(15, 6), np.arange(5).repeat(3), 5)
  nearest = nearest_classes(images, classes, labels[:, None])
  predicted = nearest.predicted
  expected = []
  for image in images.astype(np.float64):
    cosines = []
    for templates in prompts.astype(np.float64):
      mean = np.mean([t / np.linalg.norm(t) for t in templates], axis=0)
      cosines.append(
        image @ mean / (np.linalg.norm(image) * np.linalg.norm(mean))
      )
    expected.append(np.argmax(cosines))
  np.testing.assert_array_equal(predicted, expected)
  assert metrics.accuracy_score(labels, expected) == np.mean(
    predicted == labels
  )
  assert metrics.top_k_accuracy_score(
    labels, images @ classes.T, k=3
  ) == np.mean(nearest.rank <= 3)
  cosines = unit(images) @ classes.T
  np.testing.assert_allclose(nearest.score, cosines.max(1), rtol=1e-6)
  own = cosines[np.arange(50), labels]
  np.testing.assert_allclose(nearest.right_score, own, rtol=1e-6)


def test_embedding_that_is_not_a_number_belongs_to_no_class():
  images = np.array([[np.nan, 1.0], [0.0, 1.0]], np.float32)
  answers = np.array([[0, 1], [0, -1]])
  got = nearest_classes(images, np.eye(2, dtype=np.float32), answers)
  np.testing.assert_array_equal(got.predicted, [-1, 1])
  np.testing.assert_array_equal(got.rank, [np.inf, 2])
  np.testing.assert_array_equal(got.right_score, [np.nan, 0])


def test_of_equal_classes_the_first_is_nearest():
  classes = np.array([[1, 0], [0, 1], [0, 1], [np.nan, 1]], np.float32)
  images = np.float32([[0.0, 2.0]] * 5)
  answers = np.array([[1, -1], [2, -1], [0, -1], [3, -1], [0, 2]])
  got = nearest_classes(images, classes, answers)
  assert got.predicted.tolist() == [1] * 5
  assert got.rank.tolist() == [1, 2, 3, np.inf, 2]


def test_templates_are_filled_class_by_class():
  assert fill_templates(("a {}.", "{}!"), (("cat", "kitty"), ("{x}",))) == [
    ["a cat.", "cat!", "a kitty.", "kitty!"],
    ["a {x}.", "{x}!"],
  ]
  assert fill_templates(("A  close-up of_{}.",), (("St. Bernard",),), True) == [
    ["a closeup of st bernard"]
  ]


def test_several_right_classes_count_for_each_of_theirs():
  right = np.array([True, False, True, True])
  answers = np.array([[0, 1], [1, -1], [2, 1], [2, -1]])
  got = classified(right, np.ones(4), answers)["per_class"].means(4)
  np.testing.assert_allclose(got, [1, 2 / 3, 1, np.nan])


@pytest.mark.parametrize(
  ("templates", "message"),
  [
    (("a photo",), "'a photo': must have '{}' exactly once"),
    (("{} or {}",), "'{} or {}': must have"),
    ((), "must be a tuple of at least one"),
    ("a {}.", "must be a tuple of at least one"),
  ],
)
def test_bad_templates_are_named(templates, message):
  with pytest.raises(UserError, match=message):
    read_templates(templates, None)


def write(folder, name, content):
  file = folder / name
  text = content if isinstance(content, str) else json.dumps(content)
  file.write_text(text)
  return str(file)


def test_templates_come_from_files(tmp_path):
  file = write(tmp_path, "prompts.txt", "a {}.\n\n{}\n")
  assert read_templates((), file) == ("a {}.", "{}")
  with pytest.raises(UserError, match="templates must be empty beside"):
    read_templates(("{}",), file)
  file = write(tmp_path, "bad.json", ["a {}", "no place"])
  with pytest.raises(UserError, match="bad.json' has 'no place': must have"):
    read_templates((), file)


LABELS = ("n01", "n02", "n03")


@pytest.mark.parametrize(
  ("name", "content", "names"),
  [
    ("a.txt", "cat\ndog\nold owl\n", (("cat",), ("dog",), ("old owl",))),
    ("a.json", ["cat", ["dog", "pup"], "owl"],
     (("cat",), ("dog", "pup"), ("owl",))),
    ("a.json", {"n03": "owl", "n01": ["cat"]}, (("owl",), ("cat",))),
  ],
)  # fmt: skip
def test_classes_come_from_files(tmp_path, name, content, names):
  classes = read_classes(write(tmp_path, name, content), LABELS)
  assert classes.names == names
  if len(names) == 2:  # A label by number and by name; n02 is left out.
    assert classes.of_label == {"n03": 0, "n01": 1, 0: 1, 2: 0}
    assert classes.of_index == {0: 1, 2: 0}
  else:
    assert classes.of_label["n02"] == classes.of_label[1] == 1


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.txt", "cat\ndog", "must have a name for each of the 3 labels"),
    ("a.txt", "\n", "the list is empty"),
    ("a.json", {"n07": "owl"}, "has 1 labels that the data set does not have"),
    ("a.json", {"n01": []}, r"\[\] must be a name or a list"),
    ("a.json", "{", "cannot be read"),
    ("b.json", None, "No such file"),
  ],
)
def test_bad_class_files_are_named(tmp_path, name, content, message):
  file = str(tmp_path / name)
  if content is not None:
    write(tmp_path, name, content)
  with pytest.raises(UserError, match=message) as error:
    read_classes(file, LABELS)
  assert f"classes_file={file!r}" in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_answers_come_from_labels_or_a_file(tmp_path):
  of_index = {0: 1, 2: 0}
  of_label = {"n03": 0, "n01": 1, **of_index}
  classes = Classes((("owl",), ("cat",)), of_label, of_index)

  def of(answers, name, label=None):
    return answers.of(Example(b"", ("",), name, label))

  plain = Answers(None, classes)
  assert [of(plain, "x", n) for n in (0, 1, 2, None)] == [(1,), (), (0,), ()]
  by_name = Answers(
    write(tmp_path, "a.json", {"x.jpg": ["n03", "n01"], "y.jpg": 1, "z": []}),
    classes,
  )
  assert by_name.width == 2
  # The label is not asked; one that is no class leaves the image out.
  assert of(by_name, "folder/x.jpg", 1) == (0, 1)
  assert of(by_name, "y.jpg", 0) == of(by_name, "z") == of(by_name, "w") == ()
  real = Answers(write(tmp_path, "real.json", [[], [2, 0], [1]]), classes)
  names = [f"ILSVRC2012_val_{n:08}.JPEG" for n in (1, 2, 3, 4)]
  assert [of(real, name) for name in names] == [(), (0, 1), (), ()]
  with pytest.raises(UserError, match="'x' must have a label or a list"):
    Answers(write(tmp_path, "a.json", {"x": [None]}), classes)


def test_class_files_of_imagenet_match_the_data_sets():
  labels = imagenet_labels()
  of = {
    name: read_classes(str(CLASSES / f"{name}.json"), labels)
    for name in ("imagenet", "imagenet_a", "imagenet_r")
  }
  assert [len(c.names) for c in of.values()] == [1000, 200, 200]
  whole = of["imagenet"]
  assert whole.names[whole.of_label["n01440764"]] == ("tench",)
  assert whole.of_label[0] == 0 and whole.of_label[999] == 999
  for classes in of.values():
    number = classes.of_label["n07697537"]  # Hot dogs are in all of them.
    assert classes.names[number] == ("hot dog",)


def test_the_command_for_objectnet_makes_its_classes(tmp_path):
  """As docs/evaluation.md has it, on a file of the form of the data set's."""
  names = {"Alarm clock": "analog clock; digital clock", "Banana": "banana"}
  write(tmp_path, "objectnet_to_imagenet_1k.json", names)
  docs = CLASSES.parents[1] / "docs" / "evaluation.md"
  (line,) = [
    text.strip()
    for text in docs.read_text().splitlines()
    if "objectnet_to_imagenet_1k.json'" in text
  ]
  (code,) = re.fullmatch('python -c "(.*)"', line).groups()
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  file = write(tmp_path, "objectnet.json", done.stdout)
  # Labels as the data set has them, of which ImageNet lacks some.
  labels = ("Air freshener", "Alarm clock", "Backpack", "Banana")
  classes = read_classes(file, labels)
  assert classes.names == (("alarm clock",), ("banana",))
  assert [classes.of_label.get(n) for n in range(4)] == [None, 0, None, 1]


@pytest.mark.parametrize(("name", "count"), [("paper", 81), ("best", 8)])
def test_prompt_sets_of_clip(name, count):
  file = str(CLASSES.parent / "prompts" / f"clip_{name}.txt")
  assert len(set(read_templates((), file))) == count
