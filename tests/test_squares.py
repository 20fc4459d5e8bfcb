"""Squares of images of any shape, and the decoder that belongs to big_vision.

test_image_processors.py compares them with the projects whose rules they are.
"""

import base64
import io
import zlib

import numpy as np
from PIL import Image
import pytest

from big_siglip.data import decoding, fast_images, images
from big_siglip.data.batch import empty
from big_siglip.data.squares import Square
from big_siglip.data.views import Pixels
from big_siglip.data.views.view import Sample
from big_siglip.schema.words import CROPS, RESIZES

# A JPEG file of 29 x 22 pixels, and CRC-32 of what TensorFlow 2.21 makes of it:
# tf.io.decode_jpeg, and tf.cast(tf.image.resize(..., (SIZE, SIZE)), tf.uint8).
JPEG = base64.b64decode(
  "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4p"
  "LSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09P"
  "T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAWAB0DASIA"
  "AhEBAxEB/8QAGAAAAwEBAAAAAAAAAAAAAAAAAAMFBAb/xAAgEAACAgICAgMAAAAAAAAAAAABAgAD"
  "BBESIQUTIjFR/8QAFgEBAQEAAAAAAAAAAAAAAAAAAgME/8QAHxEAAQQCAgMAAAAAAAAAAAAAAQAC"
  "AwQREhMxIzJC/9oADAMBAAIRAxEAPwBT5KEfcZ49wbhJBx7l7O5rwLPVYOURk5YyApxWHfQwrvlV"
  "LY/X5OStx25nqdXZkJdUFmM4yk71DS8TcFao67LI2ccJuTUoQ9SLaeLnUIQ0PUoXwB0tWE5ZtEyu"
  "g+MISj+1KuTqv//Z"
)
TENSORFLOW = {8: 0xDF1C0041, 16: 0x32B9DAEE, 32: 0x01BA9C53}
DECODED = 0x7531F3C9


def _noise(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def test_big_vision_decodes_and_resizes_as_tensorflow():
  pixels = decoding.decode(JPEG, "big_vision")
  assert zlib.crc32(pixels.tobytes()) == DECODED
  for size, expected in TENSORFLOW.items():
    square = Square(size, "big_vision")(pixels)
    assert zlib.crc32(square.tobytes()) == expected
  exact = decoding.decode(JPEG, "bilinear")
  np.testing.assert_array_equal(exact, images.decode(JPEG))
  assert 0 < np.abs(exact.astype(int) - pixels).max() <= 4


def test_big_vision_turns_images_upright_and_takes_all_formats():
  exif = Image.Exif()
  exif[0x0112] = 6
  with Image.open(io.BytesIO(JPEG)) as image:
    files = {}
    for kind in ("jpeg", "png", "webp"):
      files[kind] = io.BytesIO()
      image.save(files[kind], kind, exif=exif, quality=95, lossless=True)
  turned = fast_images.decode_as_big_vision(files["jpeg"].getvalue())
  exact = images.decode(files["jpeg"].getvalue())
  assert turned.shape == exact.shape == (29, 22, 3)
  assert 0 < np.abs(turned.astype(int) - exact).max() <= 6
  for kind in ("png", "webp"):
    data = files[kind].getvalue()
    expected = images.decode(data)
    np.testing.assert_array_equal(decoding.decode(data, "big_vision"), expected)
  for damaged in (JPEG[:-40], b"", b"\xff\xd8\xff", b"no image"):
    with pytest.raises(images.BadImage):
      decoding.decode(damaged, "big_vision")
  with pytest.raises(images.BadImage, match="29x22 is more than 600 pixels"):
    decoding.decode(JPEG, "big_vision", 600)


@pytest.mark.parametrize("resize", RESIZES)
def test_what_is_square_already_stays(resize):
  image = _noise(12, 12)
  for crop in CROPS:
    np.testing.assert_array_equal(Square(12, resize, crop)(image), image)


def test_the_middle_is_kept_and_the_rest_filled():
  image = np.zeros((4, 8, 3), np.uint8)
  image[:, 2:6] = 200
  for crop in ("center", "shortest"):
    assert (Square(4, crop=crop)(image) == 200).all()
  filled = Square(8, crop="longest", fill=(1, 2, 3))(image)
  assert (filled[[0, 1, 6, 7]] == (1, 2, 3)).all()
  np.testing.assert_array_equal(filled[2:6], image)
  smaller = Square(8, crop="center", crop_fraction=2.0)(image)
  assert (smaller[[0, 1, 6, 7]] == 0).all() and smaller[2:6].max() > 0
  cut = Square(4, crop_fraction=0.5)(_noise(8, 8))
  np.testing.assert_array_equal(cut, _noise(8, 8)[2:6, 2:6])


def test_no_shape_takes_too_much_room_or_fails():
  for shape in ((1, 60_000), (60_000, 1)):
    for crop in ("center", "shortest"):
      with pytest.raises(images.BadImage, match="is more than"):
        Square(224, crop=crop)(np.zeros((*shape, 3), np.uint8))
    for crop in ("none", "longest"):
      found = Square(224, crop=crop)(np.zeros((*shape, 3), np.uint8))
      assert found.shape == (224, 224, 3)
  for height in range(1, 40):
    for crop in CROPS:
      for share in (0.1, 0.875, 1.0, 1.3, 10.0):
        square = Square(9, crop=crop, crop_fraction=share)
        assert square(_noise(height, 17)).shape == (9, 9, 3)


class _Example:
  def __init__(self, data):
    self.image, self.texts, self.fields, self.label = data, (), {}, None
    self.name = "example"


def _view(view, data, fast):
  out = empty(view.fields(1), 1)
  sample = Sample.of(_Example(data), fast)
  assert not view([sample], [np.random.default_rng(0)], out)
  return out["image"][0]


def _photo(height, width):
  waves = np.random.default_rng(0).normal(size=(height // 8, width // 8, 3))
  image = Image.fromarray(np.clip(waves * 40 + 128, 0, 255).astype(np.uint8))
  buffer = io.BytesIO()
  image.resize((width, height), 3).save(buffer, "jpeg", quality=90)
  return buffer.getvalue()


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "nearest", "box"])
@pytest.mark.parametrize("crop", CROPS)
def test_training_sees_what_evaluation_sees(resize, crop):
  """Exactly by Pillow's decoder, and nearly by the fast one."""
  data = _photo(240, 328)
  for share in (1.0, 0.8, 1.25):
    square = Square(48, resize, crop, share, (9, 9, 9))
    expected = square(images.decode(data))
    view = Pixels(**vars(square))
    np.testing.assert_array_equal(_view(view, data, fast=False), expected)
    fast = _view(view, data, fast=True).astype(int)
    difference = np.abs(fast - expected)
    assert difference.mean() < 4, (share, difference.mean())


def test_random_crops_go_without_it():
  data = _photo(240, 328)
  plain = Pixels(48, crop_min_area=0.3, flip=True)
  other = Pixels(48, crop_min_area=0.3, flip=True, crop="longest")
  for fast in (False, True):
    np.testing.assert_array_equal(
      _view(plain, data, fast), _view(other, data, fast)
    )
