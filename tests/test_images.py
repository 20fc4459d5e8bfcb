"""Decoding and augmenting one image."""

import io
import struct
import warnings

import numpy as np
from PIL import Image
import pytest

from big_siglip.data import images
from big_siglip.errors import UserError


def _encode(image, kind="png", **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def _noise(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def test_rgb_png_comes_back_unchanged():
  pixels = _noise(5, 7)
  decoded = images.decode(_encode(Image.fromarray(pixels)))
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, pixels)


def test_sixteen_bit_grey_is_scaled_not_clipped():
  levels = np.array([[0, 257, 25_700, 65_535]], np.uint16)
  decoded = images.decode(_encode(Image.fromarray(levels)))
  np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 100, 255])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparent_pixels_become_white(mode):
  if mode in ("P", "L"):  # One value of the palette or grey is transparent.
    image, options = Image.new(mode, (2, 1), 7), dict(transparency=7)
    if mode == "P":
      image.putpalette(bytes(range(30)))
  else:
    image, options = Image.new(mode, (2, 1)), {}
  decoded = images.decode(_encode(image, **options))
  np.testing.assert_array_equal(decoded, np.full((1, 2, 3), 255))


def test_half_transparent_black_is_grey():
  image = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
  np.testing.assert_array_equal(images.decode(_encode(image)), [[[127] * 3]])


def test_exif_orientation_turns_the_image_upright():
  pixels = _noise(4, 6)
  exif = Image.Exif()
  exif[0x0112] = 6  # The camera was turned: rotate by 90 degrees clockwise.
  decoded = images.decode(_encode(Image.fromarray(pixels), exif=exif))
  np.testing.assert_array_equal(decoded, np.rot90(pixels, -1))


def test_only_the_first_frame_is_taken():
  frames = [Image.new("RGB", (3, 3), c) for c in ("red", "blue")]
  data = _encode(frames[0], "gif", save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(images.decode(data)[0, 0], [255, 0, 0])


def test_cmyk_and_bilevel_become_rgb():
  cmyk = _encode(Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "jpeg")
  bilevel = _encode(Image.new("1", (2, 2), 1))
  for data in (cmyk, bilevel):
    np.testing.assert_array_equal(images.decode(data), np.full((2, 2, 3), 255))


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp"])
def test_every_cut_of_a_file_is_a_bad_image_or_decodes(kind):
  data = _encode(Image.fromarray(_noise(24, 24)), kind)
  with pytest.raises(images.BadImage):
    images.decode(data[: len(data) // 2])
  for end in range(0, len(data), max(1, len(data) // 40)):
    try:
      assert images.decode(data[:end]).shape == (24, 24, 3)
    except images.BadImage as e:
      assert "\n" not in str(e)


def test_too_many_pixels_are_refused_before_decoding():
  # A header that promises 60,000 x 60,000 pixels, and none of them.
  header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
  data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + b"\0" * 4
  with pytest.raises(images.BadImage):
    images.decode(data)
  small = _encode(Image.new("RGB", (11, 10)))
  assert images.decode(small, max_pixels=110).shape == (10, 11, 3)
  with pytest.raises(images.BadImage, match="11x10 is more than 109 pixels"):
    images.decode(small, max_pixels=109)


def test_each_tricky_image_decodes_or_is_a_bad_image(shared_data):
  good = 0
  files = [f for f in (shared_data / "tricky").iterdir() if f.suffix != ".csv"]
  for file in files:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      try:
        decoded = images.decode(file.read_bytes())
      except images.BadImage:
        continue
    assert decoded.dtype == np.uint8 and decoded.shape[2] == 3, file.name
    good += 1
  assert 40 <= good < len(files)


def test_resize_squashes_whatever_the_aspect():
  image = np.zeros((8, 32, 3), np.uint8)
  image[:, 16:] = 200
  squashed = images.resize(image, 4, "bilinear")
  assert squashed.shape == (4, 4, 3)
  assert squashed[:, 0].max() == 0 and squashed[:, 3].min() == 200
  assert images.resize(image, (8, 32)) is image
  assert images.resize(image, (3, 5), "bicubic").shape == (3, 5, 3)


def test_unknown_resize_method_names_the_field():
  with pytest.raises(UserError, match="config.data.resize='cubic'"):
    images.resize(_noise(2, 2), 4, "cubic")


def test_crop_keeps_at_least_the_area_asked_for():
  # Each pixel's value is its place, so corners tell the box that was cut.
  ramp = np.linspace(0, 255, 256, dtype=np.uint8)
  image = np.stack([*np.meshgrid(ramp, ramp), np.zeros((256, 256))], -1)
  image = image.astype(np.uint8)
  areas = []
  for seed in range(200):
    rng = np.random.default_rng(seed)
    crop = images.random_resized_crop(image, rng, 64, min_area=0.5)
    assert crop.shape == (64, 64, 3)
    width, height = crop[32, -1, 0] - crop[32, 0, 0], np.ptp(crop[:, 32, 1])
    areas.append(float(width) * float(height) / 255**2)
  assert 0.45 < min(areas) < 0.6
  assert 0.8 < max(areas) <= 1.0


def test_crop_of_a_sliver_falls_back_to_the_whole():
  image = _noise(1, 400)
  rng = np.random.default_rng(0)
  crop = images.random_resized_crop(image, rng, 4, min_area=0.9)
  np.testing.assert_array_equal(crop, images.resize(image, 4))


def test_flip_mirrors_left_and_right():
  image = _noise(3, 4)
  np.testing.assert_array_equal(images.flip(image)[:, 0], image[:, 3])
  np.testing.assert_array_equal(images.flip(images.flip(image)), image)
