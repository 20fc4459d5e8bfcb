"""Several crops of an image: their geometry, pixels and random streams."""

import itertools
import math

from absl import flags
import numpy as np
from PIL import Image
import pytest

from big_siglip.data import pipeline, sources
from big_siglip.data.batch import empty, union
from big_siglip.data.text import make_tokenizer
from big_siglip.data.views import Crops, fill, Pixels, Tokens

COUNT = 10
LOCAL = Crops("local_crops", 4, 8, (0.05, 0.4))
WHOLE = Crops("global_crops", 1, 16, (0.4, 1.0))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """JPEG files of 320 x 240: red grows to the right, green downwards."""
  folder = tmp_path_factory.mktemp("photos")
  across = np.linspace(0, 255, 320)[None].repeat(240, axis=0)
  down = np.linspace(0, 255, 240)[:, None].repeat(320, axis=1)
  pixels = np.stack([across, down, 0 * down], axis=-1).astype(np.uint8)
  for number in range(COUNT):
    image = Image.fromarray(pixels)
    image.save(folder / f"{number}.jpg", quality=95)
    (folder / f"{number}.txt").write_text("one")
  return str(folder)


def test_boxes_have_the_area_and_shape_that_are_asked_for():
  view = Crops("a", 500, 8, (0.05, 0.4))
  height, width = 240, 320
  crops = view.geometry(height, width, np.random.default_rng(0))
  boxes = np.array([box for box, _ in crops])
  left, top, right, bottom = boxes.T
  assert (left >= 0).all() and (right <= width).all()
  assert (top >= 0).all() and (bottom <= height).all()
  area = (right - left) * (bottom - top) / (height * width)
  assert 0.05 <= area.min() < 0.06 and 0.39 < area.max() <= 0.4 + 1e-9
  assert abs(area.mean() - 0.225) < 0.02  # Uniform.
  aspect = np.log((right - left) / (bottom - top)) / math.log(4 / 3)
  assert -1 - 1e-9 <= aspect.min() < -0.98 and 0.98 < aspect.max() <= 1 + 1e-9
  mirrored = np.mean([mirrored for _, mirrored in crops])
  assert 0.42 < mirrored < 0.58
  plain = Crops("a", 500, 8, (0.05, 0.4), flip=False)
  again = plain.geometry(height, width, np.random.default_rng(0))
  assert not any(mirrored for _, mirrored in again)


def test_no_box_fits_into_a_strip_but_the_middle():
  for height, width in ((10, 400), (400, 10)):
    crops = WHOLE.geometry(height, width, np.random.default_rng(0))
    ((left, top, right, bottom), _) = crops[0]
    sides = sorted([right - left, bottom - top])
    np.testing.assert_allclose(sides, [10, 10 * 4 / 3])
    np.testing.assert_allclose(left + right, width)
    np.testing.assert_allclose(top + bottom, height)


def _made(photos, *views, fast=False):
  source = sources.open_source("folder", "all", photos)
  examples = [source[i] for i in range(COUNT)]
  out = empty(union(view.fields(0) for view in views), COUNT)
  seeds = [(3, 0, i) for i in range(COUNT)]
  assert not fill(views, 0, examples, seeds, out, fast=fast)
  return out, seeds


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_pixels_are_those_of_the_box(photos, fast, resize):
  """Colours say where a crop lies, and whether it is mirrored."""
  view = Crops("local_crops", 6, 8, (0.05, 0.4), resize=resize)
  out, seeds = _made(photos, view, fast=fast)
  from big_siglip.data.views import Streams

  streams = Streams(seeds, view.name)
  for row in range(COUNT):
    crops = view.geometry(240, 320, streams[row])
    for (box, mirrored), pixels in zip(
      crops, out["local_crops"][row].astype(float), strict=True
    ):
      left, top, right, bottom = box
      across = left + (np.arange(8) + 0.5) * (right - left) / 8 - 0.5
      down = top + (np.arange(8) + 0.5) * (bottom - top) / 8 - 0.5
      red = np.clip(across, 0, 319) / 319 * 255
      red = red[::-1] if mirrored else red
      inside = slice(1, -1)  # At the image's edge nothing lies beyond.
      np.testing.assert_allclose(
        pixels[:, inside, 0], np.tile(red[inside], (8, 1)), atol=4
      )
      green = np.clip(down, 0, 239) / 239 * 255
      np.testing.assert_allclose(
        pixels[inside, :, 1], np.tile(green[inside, None], (1, 8)), atol=4
      )


@pytest.mark.parametrize("fast", [False, True])
def test_crops_draw_for_themselves(photos, fast):
  plain = Pixels(16, crop_min_area=0.3, flip=True)
  alone, _ = _made(photos, plain, fast=fast)
  crops, _ = _made(photos, LOCAL, fast=fast)
  both, _ = _made(photos, WHOLE, plain, LOCAL, fast=fast)
  exact = not fast  # A fast decoder takes what the most demanding view needs.
  if exact:
    np.testing.assert_array_equal(alone["image"], both["image"])
    np.testing.assert_array_equal(crops["local_crops"], both["local_crops"])
  for name, one in (("image", alone), ("local_crops", crops)):
    np.testing.assert_allclose(
      one[name].astype(int), both[name].astype(int), atol=6
    )
  # Rows, and crops of a row, differ.
  flat = both["local_crops"].reshape(-1, 8 * 8 * 3)
  assert len(np.unique(flat, axis=0)) == len(flat)
  more = Crops("local_crops", 6, 8, (0.05, 0.4))
  assert (_made(photos, more)[0]["local_crops"].shape) == (COUNT, 6, 8, 8, 3)


def _batches(photos, **options):
  source = sources.open_source("folder", "all", photos)
  views = (Tokens(make_tokenizer("bytes"), 8), Pixels(16), WHOLE, LOCAL)
  options = dict(batch_size=COUNT, seed=3, num_threads=2) | options
  batches = pipeline.train_batches(source, views, **options)
  try:
    return list(itertools.islice(batches, 2))
  finally:
    batches.close()


def test_workers_and_processes_change_no_crop(photos):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain hands them to its workers.
  expected = _batches(photos)
  for one, two in zip(expected, _batches(photos, num_workers=1), strict=True):
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])
  halves = [
    _batches(photos, process_index=i, process_count=2) for i in range(2)
  ]
  for whole, *parts in zip(expected, *halves, strict=True):
    for name in ("local_crops", "global_crops"):
      joined = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(whole[name], joined)
  # Another epoch draws others.
  assert not np.array_equal(
    np.sort(expected[0]["global_crops"].reshape(COUNT, -1).sum(axis=1)),
    np.sort(expected[1]["global_crops"].reshape(COUNT, -1).sum(axis=1)),
  )


def test_an_image_that_is_damaged_is_named(photos, tmp_path):
  (tmp_path / "0.jpg").write_bytes(b"\xff\xd8 nothing")
  (tmp_path / "0.txt").write_text("one")
  source = sources.open_source("folder", "all", str(tmp_path))
  out = empty(union([LOCAL.fields(0)]), 1)
  for fast in (False, True):
    bad = fill((LOCAL,), 0, [source[0]], [(3, 0, 0)], out, fast=fast)
    assert set(bad) == {0}
