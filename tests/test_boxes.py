"""Boxes as data: read in every form, checked, and cut as images are."""

import io
import json

import numpy as np
from PIL import Image
import pytest

from big_siglip.data import box_reading, boxes
from big_siglip.data.batch import empty
from big_siglip.data.sources import Example
from big_siglip.data.views import Pixels
from big_siglip.data.views.boxes import seen_boxes
from big_siglip.data.views.view import fill, Sample, Streams
from big_siglip.errors import BadExample, UserError

HEIGHT, WIDTH = 50, 100
# (top, left, bottom, right) in fractions of 50x100 pixels.
TRUE = np.array([[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1]], np.float32)
TEXTS = ("a dog", "all of it")


@pytest.mark.parametrize(
  "form, stored",
  [
    ("yxyx", TRUE),
    ("yxyx", TRUE.tolist()),
    ("yxyx", json.dumps(TRUE.tolist())),
    ("xyxy", [[20, 5, 90, 25], [0, 0, 100, 50]]),
    ("xywh", [(20, 5, 70, 20), (0, 0, 100, 50)]),
    ("xywh", "[[20, 5, 70, 20], [0, 0, 100, 50]]"),
  ],
)
def test_forms_are_read(form, stored):
  found = box_reading.decode(stored, list(TEXTS), form, HEIGHT, WIDTH)
  assert found.boxes.dtype == np.float32 and found.texts == TEXTS
  np.testing.assert_allclose(found.boxes, TRUE, atol=1e-7)
  assert len(found) == 2 and found[1] == ((0, 0, 1, 1), "all of it")


def test_texts_are_read_as_they_are_stored():
  box = [TRUE[0].tolist()]
  for texts in ("a dog", [b"a dog"], np.array(["a dog"], object), '["a dog"]'):
    assert box_reading.decode(box, texts, "yxyx").texts == ("a dog",)
  assert box_reading.decode(box[0], "a dog", "yxyx").boxes.shape == (1, 4)


@pytest.mark.parametrize("nothing", [None, [], "", "[]", np.zeros((0, 4))])
def test_an_image_may_have_no_boxes(nothing):
  found = box_reading.decode(nothing, [], "xyxy", HEIGHT, WIDTH)
  assert not len(found) and found.boxes.shape == (0, 4)
  moved = boxes.transform(found, (5, 5, 20, 20), True, HEIGHT, WIDTH)
  assert moved.boxes.shape == (0, 4)
  assert boxes.choose(np.random.default_rng(0), found) is None


GOOD = [0.1, 0.2, 0.5, 0.9]


@pytest.mark.parametrize(
  "stored, texts, problem, said",
  [
    ([GOOD, [0.1, 0.2, 1.1, 0.9]], "ab", "outside the image", "box 2 of 2"),
    ([[-0.1, 0.2, 0.5, 0.9]], "a", "outside the image", "[-0.1, 0.2, 0.5"),
    ([[9, 20, 60, 90]], "a", "outside the image", "format='yxyx'"),
    ([[0.5, 0.2, 0.1, 0.9]], "a", "upside down", "box 1 of 1, [0.5, 0.2"),
    ([[0.1, 0.9, 0.5, 0.2]], "a", "upside down", "box 1"),
    ([[0.1, 0.2, 0.1, 0.9]], "a", "no area", "box 1"),
    ([[1.0, 0.2, 1.01, 0.9]], "a", "no area", "box 1"),  # All beyond it.
    ([[0.1, np.nan, 0.5, 0.9]], "a", "no number", "nan"),
    ([[0.1, "left", 0.5, 0.9]], "a", "no number", "nan"),
    ([[0.1, np.inf, 0.5, 0.9]], "a", "no number", "inf"),
    ([GOOD, GOOD], ["a", " "], "no text", "box 2"),
    ([GOOD, GOOD], ["a", None], "no text", "box 2"),
    ([GOOD], [3], "no text", "is 3: must be a text"),
    ([GOOD, GOOD], "a", "other shape", "2 boxes, and 1 texts"),
    ([GOOD, GOOD], None, "other shape", "2 boxes, and 0 texts"),
    (None, ["a"], "other shape", "0 boxes, and 1 texts"),
    ([GOOD[:3]], "a", "other shape", "[1, 3], must be [n, 4]"),
    ([GOOD, GOOD[:2]], "ab", "other shape", "must be [n, 4]"),
    ([GOOD, GOOD, GOOD, GOOD[:2]], "abcd", "other shape", "[4], must be [n"),
    ("[[0.1, 0.2", "a", "other shape", "must be [n, 4]"),
  ],
)
def test_bad_boxes_are_told_with_their_place(stored, texts, problem, said):
  texts = list(texts) if isinstance(texts, str) else texts
  with pytest.raises(BadExample) as caught:
    box_reading.decode(stored, texts, "yxyx")
  assert caught.value.problem == problem and problem in boxes.PROBLEMS
  assert said in str(caught.value) and "\n" not in str(caught.value)
  assert caught.value.kind == "record"


def test_a_small_overshoot_is_clipped():
  found = box_reading.decode([[-0.015, 0, 0.5, 1.02]], ["a"], "yxyx")
  np.testing.assert_array_equal(found.boxes, np.float32([[0, 0, 0.5, 1]]))


def test_scores_go_with_their_boxes():
  given = [GOOD, [0, 0, 0.1, 0.1]]
  found = box_reading.decode(given, ["a", "b"], "yxyx", scores=[0.5, 0.25])
  moved = boxes.transform(found, (0.5, 0, 1, 1), False)
  assert moved.texts == ("a",) and moved.scores.tolist() == [0.5]
  with pytest.raises(boxes.BadBoxes, match="2 boxes, and 1 scores"):
    box_reading.decode(given, ["a", "b"], "yxyx", scores=[0.5])
  with pytest.raises(boxes.BadBoxes, match="no score"):
    box_reading.decode(given, ["a", "b"], "yxyx", scores=[0.5, np.nan])


def test_a_crop_moves_clips_and_drops():
  """Counted by hand: the right half of 50x100 pixels, mirrored or not."""
  given = [[0.5, 0.25, 1, 1], [0, 0, 1, 0.5], [0, 0.3, 1, 0.6]]
  found = box_reading.decode(given, ["a", "b", "c"], "yxyx")
  half = (50, 0, 100, 50)
  seen = boxes.transform(found, half, False, HEIGHT, WIDTH, min_visible=0.3)
  assert seen.texts == ("a", "c")  # Two thirds and one third are shown.
  np.testing.assert_allclose(
    seen.boxes, [[0.5, 0, 1, 1], [0, 0, 1, 0.2]], atol=1e-6
  )
  assert boxes.transform(found, half, False, HEIGHT, WIDTH).texts == ("a",)
  turned = boxes.transform(found, half, True, HEIGHT, WIDTH, min_visible=0.3)
  np.testing.assert_allclose(
    turned.boxes, [[0.5, 0, 1, 1], [0, 0.8, 1, 1]], atol=1e-6
  )
  # A part that reaches beyond the image, as crop="longest" fills it.
  filled = boxes.transform(found, (0, -25, 100, 75), False, HEIGHT, WIDTH)
  np.testing.assert_allclose(filled.boxes[0], [0.5, 0.25, 0.75, 1], atol=1e-6)


def _painted(box):
  """A PNG of 90x120 pixels, white within a box, black else."""
  top, left, bottom, right = (box * [90, 120, 90, 120]).astype(int)
  array = np.zeros((90, 120, 3), np.uint8)
  array[top:bottom, left:right] = 255
  file = io.BytesIO()
  Image.fromarray(array).save(file, "png")
  return file.getvalue(), [left, top, right, bottom]


@pytest.mark.parametrize(
  "pixels",
  [
    Pixels(64),
    Pixels(64, crop_min_area=0.4, flip=True),
    Pixels(64, flip=True),
    Pixels(64, crop="center"),
    Pixels(64, crop="longest", crop_fraction=0.8),
  ],
)
def test_boxes_are_where_their_pixels_are(pixels):
  """For every crop and flip, by looking at the pixels themselves."""
  rng, checked = np.random.default_rng(0), 0
  reader = box_reading.Reader(format="xyxy")
  for number in range(40):
    corners = np.sort(rng.random((2, 2)), axis=0)
    if np.ptp(corners, axis=0).min() < 0.2:
      continue
    image, stored = _painted(np.concatenate(corners))
    fields = {"boxes": [stored], "box_texts": ["white"]}
    example = Example(image, ("x",), "x", fields=fields)
    out = empty(pixels.fields(0), 1)
    seeds = [(7, 0, number)]
    assert not fill([pixels], 0, [example], seeds, out, fast=False)
    streams = Streams(seeds, "text").of(pixels.name)
    sample = Sample.of(example, fast=False)
    seen = seen_boxes(sample, pixels, reader, streams[0], min_visible=0.05)
    white = out[pixels.name][0, :, :, 0] > 127
    if not len(seen):
      assert white.mean() < 0.5
      continue
    checked += 1
    rows, columns = white.any(axis=1), white.any(axis=0)
    spans = [[np.argmax(s), 64 - np.argmax(s[::-1])] for s in (rows, columns)]
    expected = np.array(spans).T.ravel()
    np.testing.assert_allclose(seen.boxes[0] * 64, expected, atol=1.0)
  assert checked > 10


def test_fractions_of_whole_images_need_no_image():
  example = Example(b"no image", ("x",), "x", fields={"b": [GOOD], "t": ["a"]})
  sample = Sample.of(example, fast=False)
  rng = np.random.default_rng(0)
  seen = seen_boxes(sample, Pixels(8), box_reading.Reader("b", "t"), rng)
  np.testing.assert_array_equal(seen.boxes, np.float32([GOOD]))


def test_pairs_are_drawn_evenly_and_apart():
  found = box_reading.decode([GOOD] * 3, list("abc"), "yxyx")
  counts = np.zeros((3, 3), int)
  for seed in range(1800):
    first, second = boxes.choose(np.random.default_rng([1, seed]), found)
    counts["abc".index(first.text), "abc".index(second.text)] += 1
  assert counts.sum() == 1800 and counts.min() > 150 and counts.max() < 250
  one = [boxes.choose(np.random.default_rng(5), found) for _ in range(2)]
  assert one[0] == one[1], "its generator alone decides"


def test_a_task_without_data_is_one_line():
  own = {"key": "objects/bbox", "text_key": "box_texts", "format": "xywh"}
  data = {"fields": ("objects/bbox",), "boxes": own}
  with pytest.raises(UserError) as caught:
    box_reading.Reader.of(data, "config.terms.words.aref=1.0")
  assert str(caught.value) == (
    "config.data.fields=('objects/bbox',): must hold 'box_texts', for "
    "config.terms.words.aref=1.0"
  )
  data = {"fields": ("objects/bbox", "box_texts"), "boxes": own}
  read = box_reading.Reader.of(data, "x")(
    {"objects/bbox": [[0, 0, 5, 5]], "box_texts": ["a"]}, 10, 10
  )
  assert read.boxes.tolist() == [[0, 0, 0.5, 0.5]]
