"""Masks as data: read from every format, and cut as their images are."""

import io
import tarfile

import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from big_siglip.data import masks, sources
from big_siglip.data.images import BadImage
from big_siglip.data.sources import Options
from big_siglip.data.views import fill, Masks, Pixels
from big_siglip.errors import BadExample

SHAPE = 24, 36


def _png(array, mode=None):
  file = io.BytesIO()
  image = Image.fromarray(array)
  if mode == "P":
    image = image.convert("P")
    image.putpalette([7, 90, 200] * 256)
  image.save(file, "png")
  return file.getvalue()


def _mask(seed=0, shape=SHAPE):
  """Patches of a few classes and of none."""
  rng = np.random.default_rng(seed)
  few = rng.choice([0, 1, 7, 255], (4, 6)).astype(np.uint8)
  return few.repeat(shape[0] // 4, axis=0).repeat(shape[1] // 6, axis=1)


def _image(mask):
  """An image whose red channel is its mask."""
  return np.stack([mask, mask // 2, np.zeros_like(mask)], axis=-1)


@pytest.mark.parametrize(
  "stored",
  [
    _png(_mask()),
    _png(_mask().astype(np.uint16)),
    _png(np.stack([_mask()] * 3, axis=-1)),
    _mask(),
    _mask()[..., None].astype(np.int64),
    _mask().tolist(),
  ],
)
def test_masks_are_read_as_they_are_stored(stored):
  found = masks.decode(stored)
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, _mask())


def test_entries_of_a_palette_are_classes():
  image = Image.fromarray(_mask(), "P")
  image.putpalette(list(range(256)) * 3)
  file = io.BytesIO()
  image.save(file, "png")
  np.testing.assert_array_equal(masks.decode(file.getvalue()), _mask())


@pytest.mark.parametrize(
  ("stored", "said"),
  [
    (_png(_image(_mask())), "has colours (RGB), must have one channel"),
    (b"no image", "its mask: UnidentifiedImageError"),
    (np.zeros((4, 4)), "holds float64, must be classes"),
    (np.full((4, 4), 300), "holds 300 to 300, must be classes, 0 to 255"),
    (np.full((4, 4), -1), "holds -1 to -1, must be classes"),
    (np.zeros((2, 4, 4), np.uint8), "has shape [2, 4, 4], must be [H, W]"),
    (np.zeros((0, 4), np.uint8), "has shape [0, 4]"),
    ([[1], [1, 2]], "is no array [H, W]"),
  ],
)
def test_what_is_no_mask_is_named(stored, said):
  with pytest.raises(BadImage) as error:
    masks.decode(stored)
  assert said in str(error.value)


def test_resizing_takes_the_class_at_the_middle_of_a_pixel():
  mask = _mask()
  np.testing.assert_array_equal(masks.resize(mask, *SHAPE), mask)
  larger = masks.resize(mask, 48, 72)
  np.testing.assert_array_equal(larger, mask.repeat(2, 0).repeat(2, 1))
  expected = Image.fromarray(mask).resize((17, 13), Image.Resampling.NEAREST)
  np.testing.assert_array_equal(masks.resize(mask, 13, 17), expected)
  outside = masks.resize(mask, 2, 4, (-36, 0, 36, 24))
  assert (outside[:, :2] == masks.IGNORED).all()
  np.testing.assert_array_equal(outside[:, 2:], masks.resize(mask, 2, 2))


@pytest.mark.parametrize(
  ("crop", "min_area", "flip"),
  [("none", 1.0, True), ("center", 1.0, False), ("none", 0.2, True)],
)
@pytest.mark.parametrize("fast", [False, True])
def test_masks_are_cut_and_mirrored_as_their_images_are(
  crop, min_area, flip, fast
):
  """Whose red channel is the mask, resized to the nearest pixel as it is."""
  pixels = Pixels(24, "nearest", min_area, flip, crop=crop)
  views = (pixels, Masks(pixels))
  examples = [
    sources.Example(
      _png(_image(_mask(seed))),
      ("a",),
      "n",
      fields={"mask": _png(_mask(seed))},
    )
    for seed in range(12)
  ]
  out = {
    "image": np.zeros((12, 24, 24, 3), np.uint8),
    "mask": np.zeros((12, 24, 24), np.uint8),
  }
  seeds = [(0, 0, i) for i in range(12)]
  assert not fill(views, 0, examples, seeds, out, fast=fast)
  shown, cut = out["image"][..., 0], out["mask"]
  # Pillow rounds the corners of a box of fractions in another way.
  assert (shown == cut).mean() > (0.999 if min_area == 1 else 0.97)
  mirrored = [
    (cut[i] == masks.resize(_mask(i), 24, 24)[:, ::-1]).all() for i in range(12)
  ]
  if flip and min_area == 1:
    assert 0 < sum(mirrored) < 12


def test_an_image_without_a_mask_is_ignored_and_another_size_is_no_mask():
  pixels = Pixels(24)
  made = [
    sources.Example(_png(_image(_mask())), ("a",), "n", fields={"mask": value})
    for value in (None, _png(_mask(shape=(48, 72))), b"nothing")
  ]
  out = {
    "image": np.zeros((3, 24, 24, 3), np.uint8),
    "mask": np.zeros((3, 24, 24), np.uint8),
  }
  seeds = [(0, 0, i) for i in range(3)]
  bad = fill((pixels, Masks(pixels)), 0, made, seeds, out, fast=False)
  assert (out["mask"][0] == masks.IGNORED).all()
  assert str(bad[1]) == "its mask is 72x48 pixels, and the image 36x24"
  assert set(bad) == {1, 2}


OPTIONS = Options(fields=("mask",), needs_texts=False)


def _check(source, count=3):
  assert len(source) == count
  for index in range(count):
    example = source[index]
    seed = int("".join(filter(str.isdigit, example.name))[-1])
    found = masks.decode(example.fields["mask"])
    np.testing.assert_array_equal(found, _mask(seed))


@pytest.mark.parametrize(
  "folders",
  [
    ("images", "masks"),
    ("images", "annotations"),
    ("JPEGImages", "SegmentationClass"),
  ],
)
def test_a_folder_of_images_and_one_of_masks(tmp_path, folders):
  for folder in folders:
    (tmp_path / folder).mkdir()
  for seed in range(3):
    Image.fromarray(_image(_mask(seed))).save(
      tmp_path / folders[0] / f"{seed}.jpg"
    )
    Image.fromarray(_mask(seed)).save(tmp_path / folders[1] / f"{seed}.png")
  _check(sources.open_source("folder", "all", str(tmp_path), OPTIONS))
  (tmp_path / folders[1] / "1.png").unlink()
  source = sources.open_source("folder", "all", str(tmp_path), OPTIONS)
  assert len(source) == 2
  assert "1.jpg has no mask" in source.faults[0].reason


def test_folders_of_splits_and_texts_beside(tmp_path):
  for seed, split in enumerate(("training", "validation", "validation")):
    for folder in ("images", "masks"):
      (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
    place = tmp_path / "images" / split
    Image.fromarray(_image(_mask(seed))).save(place / f"{seed}.png")
    (place / f"{seed}.txt").write_text(f"caption {seed}")
    Image.fromarray(_mask(seed)).save(
      tmp_path / "masks" / split / f"{seed}.png"
    )
  options = Options(fields=("mask",))
  source = sources.open_source("folder", "val", str(tmp_path), options)
  _check(source, 2)
  assert source[0].texts == ("caption 1",)


def test_a_table_that_names_masks(tmp_path):
  lines = ["image,mask,caption"]
  for seed in range(3):
    Image.fromarray(_image(_mask(seed))).save(tmp_path / f"{seed}.png")
    (tmp_path / "of classes").mkdir(exist_ok=True)
    Image.fromarray(_mask(seed)).save(tmp_path / "of classes" / f"m{seed}.png")
    lines.append(f"{seed}.png,of classes/m{seed}.png,a picture")
  (tmp_path / "captions.csv").write_text("\n".join(lines))
  source = sources.open_source("folder", "all", str(tmp_path), OPTIONS)
  _check(source)
  (tmp_path / "of classes" / "m2.png").unlink()
  with pytest.raises(BadExample, match="'of classes/m2.png' is not in"):
    source[2]


def test_parquet_and_tar_hold_masks(tmp_path):
  rows = [
    {
      "image": {"bytes": _png(_image(_mask(seed))), "path": f"{seed}.png"},
      "mask": {"bytes": _png(_mask(seed)), "path": f"m{seed}.png"},
      "name": str(seed),
    }
    for seed in range(3)
  ]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
  options = Options(image_key="image", fields=("mask",), needs_texts=False)
  path = str(tmp_path / "a.parquet")
  _check(sources.open_source("parquet", "all", path, options))
  with tarfile.open(tmp_path / "a.tar", "w") as tar:
    for seed in range(3):
      for end, data in (("jpg", rows[seed]["image"]["bytes"]), ("mask.png", 0)):
        data = data or rows[seed]["mask"]["bytes"]
        info = tarfile.TarInfo(f"{seed}.{end}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  options = Options(fields=("mask.png",), needs_texts=False)
  source = sources.open_source("tar", "all", str(tmp_path / "a.tar"), options)
  for seed in range(3):
    found = masks.decode(source[seed].fields["mask.png"])
    np.testing.assert_array_equal(found, _mask(seed))
