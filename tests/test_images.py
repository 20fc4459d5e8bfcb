"""Decoding and augmenting one image."""

import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps
import pytest

from big_siglip.data import fast_images, images
from big_siglip.data.decoding import LazyImage
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


def test_a_transparent_level_of_sixteen_bits_becomes_white():
  levels = np.array([[0, 257, 258]], np.uint16)
  data = _encode(Image.fromarray(levels), transparency=257)
  np.testing.assert_array_equal(images.decode(data)[0, :, 0], [0, 255, 1])


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


def _exif(*fields):
  """Returns EXIF data of fields (tag, type, number, four bytes), no more."""
  entries = b"".join(struct.pack(">HHI4s", *field) for field in fields)
  head = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(fields))
  return head + entries + bytes(4)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_no_image_is_lost_for_its_exif(kind):
  image = Image.fromarray(_noise(8, 16))
  turned = (0x0112, 3, 1, b"\0\6\0\0")
  text_as_resolution = (0x011A, 2, 4, b"abc\0")  # Pillow cannot write it.
  data = _encode(image, kind, exif=_exif(turned, text_as_resolution))
  plain = images.decode(_encode(image, kind))
  np.testing.assert_array_equal(images.decode(data), np.rot90(plain, -1))
  damaged = _encode(image, kind, exif=b"Exif\0\0no such thing at all")
  np.testing.assert_array_equal(images.decode(damaged), plain)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation):
  image = Image.fromarray(_noise(4, 6))
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = _encode(image, exif=exif)
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(images.decode(data), expected)


def test_postscript_is_not_run():
  for decode in (images.decode, lambda data: LazyImage(data, True).decoded(1)):
    with pytest.raises(images.BadImage, match="is EPS"):
      decode(_encode(Image.new("RGB", (8, 8)), "eps"))


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


def _crop(image, seed, size, min_area):
  box = images.random_box(
    *image.shape[:2], np.random.default_rng(seed), min_area=min_area
  )
  return images.resize(image, size, box=box)


def test_crop_keeps_at_least_the_area_asked_for():
  # Each pixel's value is its place, so corners tell the box that was cut.
  ramp = np.linspace(0, 255, 256, dtype=np.uint8)
  image = np.stack([*np.meshgrid(ramp, ramp), np.zeros((256, 256))], -1)
  image = image.astype(np.uint8)
  areas = []
  for seed in range(200):
    crop = _crop(image, seed, 64, min_area=0.5)
    assert crop.shape == (64, 64, 3)
    width, height = crop[32, -1, 0] - crop[32, 0, 0], np.ptp(crop[:, 32, 1])
    areas.append(float(width) * float(height) / 255**2)
  assert 0.45 < min(areas) < 0.6
  assert 0.8 < max(areas) <= 1.0


def test_crop_of_a_sliver_falls_back_to_the_whole():
  image = _noise(1, 400)
  crop = _crop(image, 0, 4, min_area=0.9)
  np.testing.assert_array_equal(crop, images.resize(image, 4))


def test_flip_mirrors_left_and_right():
  image = _noise(3, 4)
  np.testing.assert_array_equal(images.flip(image)[:, 0], image[:, 3])
  np.testing.assert_array_equal(images.flip(images.flip(image)), image)


def _photo(height, width, **options):
  """Returns a JPEG file of smooth colours, as photos are, and some noise."""
  rng = np.random.default_rng(0)
  waves = rng.normal(size=(height // 8, width // 8, 3)) * 40 + 128
  image = Image.fromarray(np.clip(waves, 0, 255).astype(np.uint8))
  image = image.resize((width, height), Image.Resampling.BICUBIC)
  return _encode(image, "jpeg", quality=90, **options)


def _decode(data, size, choose_box=None):
  """Returns what a view of `size` gets of an image, and the box in it."""
  image = LazyImage(data, fast=True)
  height, width = image.shape()
  box = choose_box and choose_box(height, width)
  left, top, right, bottom = box or (0, 0, width, height)
  scale = fast_images.scale(bottom - top, right - left, size)
  pixels, scale = image.decoded(scale)
  if scale < 1:
    box = tuple(scale * side for side in (left, top, right, bottom))
  return pixels, box


def _fast(data, size, choose_box=None):
  pixels, box = _decode(data, size, choose_box)
  return fast_images.resize(pixels, size, box)


def test_fast_decoder_reads_no_more_pixels_than_needed():
  data = _photo(480, 640)
  for size, shape in ((480, (480, 640)), (224, (240, 320)), (60, (60, 80))):
    pixels, _ = _decode(data, size)
    assert pixels.shape == (*shape, 3)
  # Small images are not enlarged; and half a width needs twice the pixels.
  assert _decode(data, 700)[0].shape == (480, 640, 3)
  pixels, box = _decode(data, 160, lambda h, w: (0, 0, w / 2, h))
  assert pixels.shape == (240, 320, 3) and box == (0, 0, 160, 240)
  # At full size its pixels are Pillow's own.
  pixels, _ = _decode(data, 480)
  np.testing.assert_array_equal(pixels, images.decode(data))


def test_each_scale_covers_the_image_to_its_edge():
  """A ramp would be stretched by a scale that was not exact."""
  ramp = np.linspace(0, 255, 101, dtype=np.uint8)
  image = np.stack([np.broadcast_to(ramp, (77, 101))] * 3, -1)
  data = _encode(Image.fromarray(image), "jpeg", quality=100)
  for size in range(9, 77):
    assert _difference(_fast(data, size), _exact(data, size)).max() <= 3


def _exact(data, size, box=None):
  return images.resize(images.decode(data), size, box=box)


def _difference(left, right):
  return np.abs(left.astype(int) - right.astype(int))


@pytest.mark.parametrize(
  "options", [{}, {"subsampling": 0}, {"progressive": 1}]
)
def test_fast_decoder_stays_near_pillow(options):
  data = _photo(480, 640, **options)
  for box in (None, (100.3, 50.5, 500.25, 400.75)):
    difference = _difference(
      _fast(data, 96, lambda h, w, box=box: box), _exact(data, 96, box)
    )
    assert difference.mean() < 1.5 and difference.max() < 32


def test_photos_come_within_the_bounds_that_the_documentation_gives(
  shared_data,
):
  differences = [
    _difference(_fast(data, 224), _exact(data, 224))
    for file in sorted((shared_data / "photos_full").glob("*.JPEG"))[::3]
    for data in [file.read_bytes()]
  ]
  assert len(differences) == 34
  assert np.mean([d.mean() for d in differences]) < 1.2
  assert max(d.mean() for d in differences) < 5
  assert max(np.percentile(d, 99) for d in differences) < 32


def _outcome(load, data):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      return load(data)
    except images.BadImage as e:
      return str(e)


def test_tricky_images_come_out_alike_with_both_decoders(shared_data):
  files = [f for f in (shared_data / "tricky").iterdir() if f.suffix != ".csv"]
  refused = 0
  for file in files:
    data = file.read_bytes()
    fast = _outcome(lambda data: _fast(data, 24), data)
    exact = _outcome(lambda data: _exact(data, 24), data)
    if isinstance(exact, str):
      assert fast == exact, file.name
      refused += 1
      continue
    # JPEG's own scaling, and then the filter.
    pixels, box = _decode(data, 24)
    scaled = images.resize(pixels, 24, box=box)
    assert _difference(scaled, exact).mean() < 3, file.name
    assert _difference(fast, scaled).mean() < 3, file.name
  assert 0 < refused < 20


def _with_adobe(jpeg, colors):
  """Puts Adobe's segment in the place of JFIF's, which would rule."""
  assert jpeg[2:4] == b"\xff\xe0"
  end = 4 + int.from_bytes(jpeg[4:6], "big")
  segment = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes([colors])
  return jpeg[:2] + segment + jpeg[end:]


def test_the_files_of_adobes_programs_are_plain_jpeg():
  jpeg = _encode(Image.fromarray(_noise(64, 96)), "jpeg")
  adobe = _with_adobe(jpeg, colors=1)
  image, _ = _decode(adobe, 16)
  assert image.shape == (16, 24, 3)
  np.testing.assert_array_equal(_fast(adobe, 16), _fast(jpeg, 16))
  np.testing.assert_array_equal(_exact(adobe, 16), _exact(jpeg, 16))


def test_what_is_no_plain_jpeg_is_exact_with_the_fast_decoder():
  pixels = Image.fromarray(_noise(64, 96))
  exif = Image.Exif()
  exif[0x0112] = 6
  for data in (
    _encode(pixels),
    _encode(pixels, "jpeg", exif=exif),
    _encode(pixels.convert("CMYK"), "jpeg"),
    _encode(pixels, "jpeg", keep_rgb=True),
    _with_adobe(_encode(pixels, "jpeg"), colors=0),
    _encode(pixels.convert("L")),
  ):
    np.testing.assert_array_equal(_fast(data, 16), _exact(data, 16))


def test_every_cut_of_a_jpeg_is_refused_by_both_decoders_or_by_none():
  data = _photo(64, 64)
  for end in [*range(0, len(data), 97), len(data) - 2, len(data)]:
    fast = _outcome(lambda data: _fast(data, 16), data[:end])
    exact = _outcome(lambda data: _exact(data, 16), data[:end])
    assert isinstance(fast, str) == isinstance(exact, str), end
    assert not isinstance(fast, str) or fast == exact


def test_fast_decoder_refuses_too_many_pixels_before_decoding():
  data = _photo(80, 80)
  assert fast_images.shape(data, max_pixels=6_400) == (80, 80)
  assert fast_images.shape(data, max_pixels=6_399) is None  # Pillow refuses.
  with pytest.raises(images.BadImage, match="80x80 is more than 6399 pixels"):
    images.decode(data, max_pixels=6_399)


@pytest.mark.parametrize("sides", [b"\xff\xff\xff\xff", bytes(4)])
def test_both_decoders_say_the_same_of_impossible_sizes(sides):
  data = _photo(80, 80)
  place = data.index(b"\xff\xc0") + 5
  data = data[:place] + sides + data[place + 4 :]
  said = _outcome(lambda data: _fast(data, 16), data)
  assert isinstance(said, str)
  assert said == _outcome(lambda data: _exact(data, 16), data)


@pytest.mark.parametrize("shape", [(240, 320), (448, 300), (100, 150)])
def test_fast_resize_antialiases_as_pillow_does(shape):
  image = images.resize(images.decode(_photo(480, 640)), shape)
  fast = fast_images.resize(image, 224)
  assert fast.shape == (224, 224, 3) and fast.dtype == np.uint8
  assert _difference(fast, images.resize(image, 224)).mean() < 0.6
  # Noise has all that aliasing could fold back: far from no antialiasing.
  noise = _noise(*shape)
  exact = images.resize(noise, 224)
  aliased = _difference(images.resize(noise, 224, "big_vision"), exact).mean()
  blurred = _difference(fast_images.resize(noise, 224), exact).mean()
  assert blurred < max(0.6 * aliased, 1)


def test_fast_resize_cuts_between_pixels():
  ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8), (128, 128))
  image = np.stack([ramp, ramp.T, ramp], -1)
  for box in ((3.3, 10.25, 100.5, 127.9), (0, 0, 64.5, 20), (0, 0, 128, 127.5)):
    for size in (16, 48, 224):
      exact = images.resize(image, size, box=box)
      difference = _difference(fast_images.resize(image, size, box), exact)
      assert difference.max() <= 2, (box, size)


def test_fast_resize_of_much_larger_images_is_pillows():
  image = _noise(64, 500)
  np.testing.assert_array_equal(
    fast_images.resize(image, 16), images.resize(image, 16)
  )


def test_fast_decoder_looks_for_exif_where_pillow_does():
  """A comment may hold anything; so may what follows the first scan."""
  image = Image.fromarray(_noise(64, 96))
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = _encode(image, "jpeg", exif=exif, comment=b"x" * 70)
  plain = _encode(image, "jpeg", comment=b"Exif\0\0, Orientation")
  assert _decode(turned, 96)[0].shape == (96, 64, 3)
  assert _decode(plain, 96)[0].shape == (64, 96, 3)
  # Fill bytes before a segment are allowed and rare: Pillow reads those.
  padded = turned[:2] + b"\xff\xff" + turned[2:]
  assert _decode(padded, 96)[0].shape == (96, 64, 3)
