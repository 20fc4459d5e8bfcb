"""The sizes of images in patches, and the patches, against published code."""

import math

import numpy as np
from PIL import Image
import pytest
import transformers
from transformers.models.siglip2 import (
  image_processing_pil_siglip2 as published,
)

from big_siglip.data import patches

# ((height, width), p, N) -> (height, width), of big_vision's own test.
SIZES = (
  ((48, 48), 3, 121, (33, 33)),
  ((112, 109), 7, 225, (105, 105)),
  ((176, 176), 11, 64, (88, 88)),
  ((256, 64), 16, 12, (96, 32)),
  ((256, 64), 8, 15, (56, 16)),
  ((63, 241), 16, 16, (32, 128)),
  ((16, 512), 16, 16, (16, 256)),
)
LENGTHS = (128, 256, 576, 784, 1024)
GRIDS = {
  (480, 640): ((9, 12), (14, 18), (21, 27), (24, 32), (27, 36)),
  (427, 640): ((9, 14), (13, 19), (19, 29), (23, 34), (26, 39)),
  (1080, 1920): ((8, 15), (12, 21), (18, 32), (21, 37), (24, 42)),
  (2200, 1700): ((12, 10), (18, 14), (27, 21), (32, 24), (36, 28)),
  (777, 777): ((11, 11), (16, 16), (24, 24), (28, 28), (32, 32)),
  (64, 4096): ((1, 64), (2, 128), (3, 192), (4, 196), (4, 256)),
}


@pytest.mark.parametrize(("size", "patch", "length", "expected"), SIZES)
def test_sizes_are_those_of_big_vision(size, patch, length, expected):
  found = patches.grid_of(*size, patch, length)
  assert tuple(patch * n for n in found) == expected


@pytest.mark.parametrize("size", GRIDS)
def test_grids_at_the_trained_lengths(size):
  found = tuple(patches.grid_of(*size, 16, length) for length in LENGTHS)
  assert found == GRIDS[size]


def test_any_size_is_resized_as_transformers_does():
  rng = np.random.default_rng(0)
  theirs = published.get_image_size_for_max_num_patches
  for _ in range(300):
    size = [round(math.exp(x)) for x in rng.uniform(0, 9, 2)]
    length, patch = int(rng.integers(64, 1025)), int(rng.integers(2, 33))
    if max(size) * 1e-6 / patch > 1:
      continue
    expected = theirs(*size, patch, length)
    found = patches.grid_of(*size, patch, length)
    assert tuple(patch * n for n in found) == tuple(expected), (size, length)
    assert math.prod(found) <= length


def test_the_smallest_images_are_enlarged_a_hundredfold():
  assert patches.grid_of(1, 1, 16, 256) == (7, 7)


def test_an_image_of_one_patch_and_lengths_of_one():
  assert patches.grid_of(500, 20, 16, 1) == (1, 1)
  assert patches.grid_of(10, 10, 16, 1) == (1, 1)


def test_patches_are_those_of_transformers_to_the_bit():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (3 * 16, 5 * 16, 3), np.uint8)
  processor = transformers.Siglip2ImageProcessorPil(
    patch_size=16, max_num_patches=20, do_resize=False
  )
  theirs = processor.preprocess(Image.fromarray(image), return_tensors="np")
  ours = patches.cut(image, 16, 20)
  real = ours[:15].astype(np.float32)
  raw = np.rint((theirs["pixel_values"][0] + 1) * 127.5)
  assert theirs["spatial_shapes"].tolist()[0] in ([3, 5],)
  np.testing.assert_array_equal(real, raw[:15])
  assert not ours[15:].any()
  np.testing.assert_array_equal(patches.join(ours, (3, 5), 16), image)
