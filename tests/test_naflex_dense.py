"""Evaluations of masks and of crops, where images keep their shape."""

import json
import shutil

from ml_collections import ConfigDict
import model_cases
import numpy as np
import pytest

import big_siglip
from big_siglip.data import patches
from big_siglip.data.preprocessing import Preprocess, Preprocessing
from big_siglip.data.sources import Example
from big_siglip.data.squares import Square
from big_siglip.datasets import scenes_draw, scenes_wide
from big_siglip.evaluators.correspondence import show_twice
from big_siglip.evaluators.grids import Grid
from big_siglip.models import make_model
from configs import dense

SHAPES = "configs/classes/scenes_shapes.json"
EVALUATIONS = {
  "labels": dense.segmentation(classes_file=SHAPES),
  "probe": dense.segmentation_probe(classes_file=SHAPES, train_split="all"),
  "nearest": dense.patch_retrieval(
    classes_file=SHAPES, train_split="all", memory=500
  ),
  "crops": dense.correspondence(),
}

OF_MASKS = ("labels", "probe", "nearest")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model of squares and one that keeps shapes, of equal parameters."""
  folder = tmp_path_factory.mktemp("shapes")
  config = model_cases.model_config(
    image=dict(size="mu/8", image_size=64, depth=1),
    text=dict(vocab_size=36, length=12, depth=1),
  )
  params = model_cases.random_params(make_model(config))
  model_cases.save_model(folder / "squares", params, config, model_cases.SCENES)
  shutil.copytree(folder / "squares", folder / "naflex")
  file = folder / "naflex" / "config.json"
  described = json.loads(file.read_text())
  described["model"]["image"]["max_patches"] = 70
  file.write_text(json.dumps(described))
  for name, draws in (("scenes", scenes_draw), ("wide", scenes_wide)):
    for kind in ("images", "masks"):
      (folder / name / kind).mkdir(parents=True)
    for index in range(8):
      scene = draws.train_example(index)
      (folder / name / "images" / f"{index}.png").write_bytes(scene.image)
      (folder / name / "masks" / f"{index}.png").write_bytes(scene.mask)
  return folder


def evaluate(folder, model, data, names, **fields):
  evals = ConfigDict(
    {name: ConfigDict(EVALUATIONS[name].to_dict()) for name in names}
  )
  for section in evals.values():
    section.update(
      dict(path=str(folder / data), split="all", batch_size=4, **fields)
    )
  return big_siglip.evaluate(big_siglip.load(folder / model), evals)


def test_of_squares_both_models_say_the_same(folder):
  """Six places of each sequence are padding, which must not show.

  Crops are no squares, so that they are not among it.
  """
  squares, naflex = (
    evaluate(folder, model, "scenes", OF_MASKS, baselines=False)
    for model in ("squares", "naflex")
  )
  for name in OF_MASKS:
    for metric, value in squares[name].metrics.items():
      assert naflex[name].metrics[metric] == pytest.approx(value, abs=1e-4)


def test_images_of_all_shapes_are_measured_on_their_own_grid(folder):
  found = evaluate(folder, "naflex", "wide", ("probe", "crops"))
  for result in found.values():
    assert result.images == 8 and result.metrics["skipped"] == 0
  # A probe that has seen all answers reaches the best that patches can do.
  probe, crops = (found[name].metrics for name in ("probe", "crops"))
  assert probe["miou"] > 0.6 * probe["ceiling_miou"] > 0.2
  assert probe["raw_miou"] > 0.6 * probe["ceiling_miou"]
  # The nearest patch lies within a tenth of a side, if there are ten.
  assert crops["ceiling_pck@0.1"] > 0.5
  shapes = {example.whole.shape for example in found["crops"].examples}
  assert len(shapes) > 1
  for shape in shapes:
    assert shape[0] % 8 == shape[1] % 8 == 0


@pytest.mark.parametrize("size", [(24, 168), (168, 24), (64, 64), (50, 90)])
def test_a_mask_is_counted_on_the_grid_of_its_image(size):
  grid = Grid(8, 8, Square(64), 64)
  mask = np.random.default_rng(0).integers(0, 4, size).astype(np.uint8)
  rows, columns = patches.grid_of(*size, 8, 64)
  counts = grid.classes(mask, 4)
  assert counts.shape == (rows, columns, 4)
  for row in range(rows):
    for column in range(columns):
      down, right = (
        ((first * 8 + np.arange(8) + 0.5) * side / (count * 8)).astype(int)
        for first, side, count in zip(
          (row, column), size, (rows, columns), strict=True
        )
      )
      cell = mask[np.ix_(down, right)]
      expected = np.bincount(cell.ravel(), minlength=4)
      np.testing.assert_array_equal(counts[row, column], expected)
  nearest = grid.to_nearest(np.arange(rows * columns).reshape(rows, -1), *size)
  assert nearest.shape == size and nearest[-1, -1] == rows * columns - 1
  down, right = (
    np.arange(side) * n // side
    for side, n in zip(size, (rows, columns), strict=True)
  )
  np.testing.assert_array_equal(
    nearest[size[0] // 2], down[size[0] // 2] * columns + right
  )


def test_the_truth_of_a_crop_is_where_its_pixels_are():
  """Down and right are colours of the image, so that pixels tell places."""
  image = np.zeros((48, 200, 3), np.uint8)
  image[..., 0] = np.linspace(0, 255, 48).round()[:, None]
  image[..., 1] = np.linspace(0, 255, 200).round()[None]
  value = Preprocessing(48, "bilinear", None, None, None, None, None)
  grid = Grid(8, 6, value.square(), 64)
  for number in range(5):
    image[0, 0, 2] = number  # Another crop by lot.
    made = show_twice(
      Example(image.copy(), ("a",), "n"), Preprocess(value, None), grid, 0.3
    )
    whole, own = made["grids"].tolist()
    assert tuple(whole) == patches.grid_of(48, 200, 6, 64)
    assert made["other"]["grid"].tolist() == own
    count = own[0] * own[1]
    cells = made["other"]["patches"].reshape(64, 36, 3).mean(axis=1)
    np.testing.assert_allclose(
      made["truth"][:count], cells[:count, :2] / 255, atol=0.03
    )


def test_sizes_of_squares_are_refused(folder):
  with pytest.raises(big_siglip.errors.UserError) as error:
    evaluate(folder, "naflex", "wide", ("crops",), size=96)
  assert "size=96: is for models of squares" in str(error.value)
  assert len(str(error.value).splitlines()) == 1
