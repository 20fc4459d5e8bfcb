"""The project's own data sets: what they hold and how they are prepared."""

import collections
import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage
from sklearn import datasets as sklearn_datasets

from big_siglip.data import images, sources
from big_siglip.datasets import (
  digits,
  drawing,
  prepare,
  scenes_draw,
  scenes_wide,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def _start(code, *args):
  return subprocess.Popen(
    [sys.executable, "-c", code, *args],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_digits_are_all_the_scans_once_with_their_labels(data_dir):
  train = sources.open_source("digits", "train", data_dir)
  test = sources.open_source("digits", "test", data_dir)
  assert (len(train), len(test)) == (1_437, 360)
  assert train.class_names == digits.CLASS_NAMES
  reference = sklearn_datasets.load_digits()
  examples = [*train, *test]
  names = [example.name for example in examples]
  assert len(set(names)) == 1_797
  for example in examples[::50]:
    index = int(example.name.split("/")[1])
    assert example.label == reference.target[index]
    pixels = images.decode(example.image)[:, :, 0] * (16 / 255)
    np.testing.assert_allclose(pixels, reference.images[index], atol=0.04)
  counts = collections.Counter(example.label for example in test)
  assert sorted(counts) == list(range(10)) and min(counts.values()) > 20


def test_digit_captions_name_their_digit_and_no_other(data_dir):
  example = sources.open_source("digits", "train", data_dir)[0]
  assert example.texts == digits.captions(example.label)
  assert len(set(example.texts)) >= 3
  for text in example.texts:
    word = digits.CLASS_NAMES[example.label]
    assert word in text or str(example.label) in text
  assert "a photo of the digit seven." in digits.captions(7)


def test_scene_test_captions_differ_in_meaning_from_all_others(data_dir):
  assert len(sources.open_source("scenes/300", "train", data_dir)) == 300
  test = sources.open_source("scenes/300", "test", data_dir)
  captions = [text for example in test for text in example.texts]
  assert len(captions) == len(set(captions)) == 1_000
  meanings = {_meaning(caption) for caption in captions}
  assert len(meanings) == 1_000
  trained = {
    _meaning(scenes_draw.train_example(i).caption) for i in range(3_000)
  }
  assert not meanings & trained
  scene = scenes_draw.train_example(0)
  assert scene.caption == "three big white stars below two big pink squares"
  assert scene.phrasings == (
    scene.caption,
    "two big pink squares above three big white stars",
  )
  lone = scenes_draw.train_example(2)
  assert lone.phrasings == (lone.caption,)


def _meaning(caption):
  """Turns "A right of B" into "B left of A", and "below" into "above"."""
  for word, opposite in ((" right of ", " left of "), (" below ", " above ")):
    if word in caption:
      return opposite.join(caption.split(word)[::-1])
  return caption


def test_scene_depends_on_its_index_alone(data_dir):
  few = sources.open_source("scenes/20", "train", data_dir)
  more = sources.open_source("scenes/300", "train", data_dir)
  for index in (0, 7, 19):
    assert few[index] == more[index]
    scene = scenes_draw.train_example(index)
    assert (scene.image, (scene.caption,)) == (
      few[index].image,
      few[index].texts,
    )
  assert len(sources.open_source("scenes/20", "test", data_dir)) == 1_000


@pytest.mark.parametrize("draws", [scenes_draw, scenes_wide])
def test_several_processes_draw_what_one_does(draws):
  found = list(drawing.train_examples(draws, 20, processes=3))
  assert found == list(drawing.train_examples(draws, 20))
  drawn = drawing.train_examples(draws, 10_000, processes=2)
  assert next(drawn) == found[0]
  drawn.close()  # Those that draw end with whoever reads.


def test_a_process_that_draws_and_dies_is_told_of():
  with pytest.raises(RuntimeError, match="a process that draws ended: 1"):
    list(drawing.train_examples(drawing, 2, processes=2))


@pytest.mark.slow
def test_wide_scenes_are_read_by_their_index(data_dir):
  source = sources.open_source("scenes_wide/30", "train", data_dir)
  for index in (0, 1, 29):
    scene = scenes_wide.train_example(index)
    found = source[index]
    assert (found.image, found.texts) == (scene.image, (scene.caption,))


def test_wide_scenes_lie_whole_on_canvases_of_their_shape():
  shapes = collections.Counter()
  for index in range(100):
    scene = scenes_wide.train_example(index)
    mask = np.array(Image.open(io.BytesIO(scene.mask)))
    shapes[Image.open(io.BytesIO(scene.image)).size] += 1
    assert mask.shape[::-1] == Image.open(io.BytesIO(scene.image)).size
    count = sum(scenes_draw.COUNTS[t.split()[0]] for t in scene.box_texts)
    assert _blobs(mask) == count, scene.caption
    if len(scene.boxes) == 2 and mask.shape == (24, 168):
      first = scene.caption.startswith(scene.box_texts[0])
      says_left = "left of" in scene.caption
      assert (scene.boxes[0][3] < scene.boxes[1][1]) and first == says_left
  assert set(shapes) == set(scenes_wide.SIZES.values())
  assert min(shapes.values()) > 10


def test_wide_test_scenes_come_by_shape_and_mean_what_no_other_does():
  scenes = list(scenes_wide.test_examples(50))
  sizes = [Image.open(io.BytesIO(scene.image)).size for scene in scenes]
  order = [scenes_wide.SIZES[name] for name in ("wide", "tall", "square")]
  assert sizes == [order[0]] * 20 + [order[1]] * 20 + [order[2]] * 10
  meanings = {_meaning(scene.caption) for scene in scenes}
  trained = {_meaning(scenes_wide.train_example(i).caption) for i in range(100)}
  assert len(meanings) == 50 and not meanings & trained


def _blobs(mask):
  """Returns how many connected pieces of things a mask has."""
  return ndimage.label(mask, np.ones((3, 3)))[1]


def test_scene_captions_fit_siglips_64_tokens_as_bytes():
  longest = 0
  for index in range(3_000):
    longest = max(longest, len(scenes_draw.train_example(index).caption))
  assert 55 < longest <= 63
  nouns = {k: scenes_draw.PLURALS[k] for k in scenes_draw.PLURALS}
  group = [
    scenes_draw.Group("three", s, c, n)
    for s in scenes_draw.SIZES
    for c in scenes_draw.COLOURS
    for n in nouns
  ]
  two = sorted(len(str(g)) for g in group)[-2:]
  assert sum(two) + len(" right of ") <= 63


def test_scene_image_shows_what_its_caption_says():
  """Counts blobs of each colour, and compares where they lie."""
  from scipy import ndimage

  checked = 0
  for index in range(150):
    data, caption, *_ = scenes_draw.train_example(index)
    pixels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert pixels.shape == (64, 64, 3)
    found, middles = [], []
    for group in _groups(caption):
      colour = np.array(scenes_draw.COLOURS[group[2]])
      near = np.abs(pixels - colour).sum(-1) < 75
      blobs, count = ndimage.label(near, np.ones((3, 3)))
      sizes = np.bincount(blobs.ravel())[1:]
      found.append(int((sizes > 15).sum()))
      middles.append(np.argwhere(near).mean(0) if count else None)
    groups = _groups(caption)
    if len({g[2] for g in groups}) < len(groups):
      continue  # One colour: the blobs of both would be counted together.
    assert found == [scenes_draw.COUNTS[g[0]] for g in groups], caption
    if len(groups) == 2:
      _check_relation(caption, middles)
    checked += 1
  assert checked > 100


def _groups(caption):
  for word in scenes_draw.OPPOSITES:
    if f" {word} " in caption:
      return [part.split() for part in caption.split(f" {word} ")]
  return [caption.split()[:4]]


def _check_relation(caption, middles):
  (y0, x0), (y1, x1) = middles
  if "left of" in caption:
    assert x1 - x0 > 2 * abs(y1 - y0), caption
  elif "right of" in caption:
    assert x0 - x1 > 2 * abs(y1 - y0), caption
  elif "above" in caption:
    assert y1 - y0 > 2 * abs(x1 - x0), caption
  else:
    assert y0 - y1 > 2 * abs(x1 - x0), caption


def test_masks_and_boxes_of_scenes_lie_where_the_shapes_are(data_dir):
  fields = ("mask", "boxes", "box_texts")
  options = sources.Options(fields=fields)
  source = sources.open_source("scenes/20", "train", data_dir, options)
  values = {value: key for key, value in scenes_draw.MASK_VALUES.items()}
  for index in range(20):
    example = source[index]
    mask = np.asarray(Image.open(io.BytesIO(example.fields["mask"])))
    pixels = np.asarray(Image.open(io.BytesIO(example.image))).astype(int)
    assert mask.shape == (64, 64)
    groups = {tuple(group[2:]) for group in _groups(example.texts[0])}
    found = {values[value] for value in np.unique(mask) if value}
    assert found == {
      (colour, noun if noun in scenes_draw.PLURALS else _singular(noun))
      for colour, noun in groups
    }
    ground = np.median(pixels[mask == 0], axis=0)
    for value in np.unique(mask)[1:]:
      own = np.median(pixels[mask == value], axis=0)
      assert np.abs(own - scenes_draw.COLOURS[values[value][0]]).max() <= 16
      nearer = np.linalg.norm(pixels - own, axis=-1) < np.linalg.norm(
        pixels - ground, axis=-1
      )
      assert nearer[mask == value].mean() > 0.93
      assert (nearer & (mask == 0)).sum() < 0.25 * (mask > 0).sum()
    texts = [text.decode() for text in example.fields["box_texts"]]
    boxes = np.array(example.fields["boxes"]) * 64
    assert sorted(texts) == sorted(
      " ".join(g) for g in _groups(example.texts[0])
    )
    covered = np.zeros_like(mask, bool)
    for top, left, bottom, right in boxes:
      rows = slice(int(np.floor(top)), int(np.ceil(bottom)))
      covered[rows, int(np.floor(left)) : int(np.ceil(right))] = True
    assert not mask[~covered].any()


def _singular(plural):
  return next(k for k, v in scenes_draw.PLURALS.items() if v == plural)


_PREPARE = """
import sys
from absl import logging
from big_siglip.data import sources
logging.set_verbosity(logging.INFO)
source = sources.open_source("scenes/400", "train", sys.argv[1])
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
print(len(source), source[399].name)
"""


def test_two_processes_at_once_prepare_once_without_tensorflow(tmp_path):
  processes = [_start(_PREPARE, str(tmp_path)) for _ in range(2)]
  outputs = [process.communicate(timeout=120)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  logs = "".join(outputs)
  assert logs.count("400 scenes/train/000399") == 2, logs
  assert logs.count("Preparing the data set scenes/400") == 1, logs
  # That line, the two printed ones, and nothing of TFDS's own.
  assert len(logs.splitlines()) == 3, logs
  assert os.listdir(tmp_path / "scenes" / "400") == ["1.2.0"]


def test_what_a_killed_process_leaves_is_not_taken_for_whole(tmp_path):
  code = _PREPARE.replace("scenes/400", "scenes/100000")
  process = _start(code, str(tmp_path))
  folder = tmp_path / "scenes" / "100000"
  deadline = time.monotonic() + 100
  while not list(folder.glob("incomplete*")) and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert list(folder.glob("incomplete*")) and not (folder / "1.2.0").exists()
  # The same leftover, for a size that is quick to write.
  small = tmp_path / "scenes" / "50"
  folder.rename(small)
  assert len(sources.open_source("scenes/50", "train", str(tmp_path))) == 50
  assert os.listdir(small) == ["1.2.0"]


@pytest.mark.parametrize("missing", ["*train*", "dataset_info.json"])
def test_data_set_with_a_missing_file_is_written_again(tmp_path, missing):
  prepare.prepare("digits", str(tmp_path))
  (lost,) = (tmp_path / "digits" / "1.0.0").glob(missing)
  lost.unlink()
  assert len(sources.open_source("digits", "train", str(tmp_path))) == 1_437
  assert lost.exists()


def test_data_folder_comes_from_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv("BIG_SIGLIP_DATA", str(tmp_path))
  assert prepare.default_data_dir() == str(tmp_path)
  monkeypatch.delenv("BIG_SIGLIP_DATA")
  assert prepare.default_data_dir().endswith("/.cache/big_siglip")
