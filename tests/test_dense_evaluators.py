"""Evaluators of patches; numpy, scikit-learn and counting by hand judge."""

import functools
import shutil

from etils import epath
import jax
from ml_collections import ConfigDict
import model_cases
import numpy as np
from PIL import Image
import pyarrow.parquet as pq
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import jaccard_score

import big_siglip
from big_siglip.data import masks
from big_siglip.data.preprocessing import Preprocess, Preprocessing
from big_siglip.data.sources import Example, open_source
from big_siglip.data.squares import Square
from big_siglip.datasets import scenes_draw
from big_siglip.errors import UserError
from big_siglip.evaluation import pictures, rows, samples
from big_siglip.evaluators.correspondence import show_twice
from big_siglip.evaluators.grids import Grid
from big_siglip.evaluators.overlap import Overlap
from big_siglip.evaluators.segmentation_probe import _Moments, _solve
from big_siglip.models import make_model
from configs import dense


def test_overlap_equals_what_is_counted_by_hand():
  found = Overlap(2, 3)
  true = np.array([[0, 0, 1], [1, 255, 255]], np.uint8)
  found.add(0, np.array([[0, 1, 1], [1, 0, 2]]), true)
  found.add(1, np.array([[0, 0]]), np.array([[0, 1]], np.uint8))
  # 0: 2 of 4 pixels; 1: 2 of 4; 2: in no mask that counts.
  np.testing.assert_allclose(found.ious(), [2 / 4, 2 / 4, np.nan])
  assert found.mean() == 0.5
  assert found.accuracy() == 4 / 6
  np.testing.assert_allclose(found.image_means(), [(1 / 2 + 2 / 3) / 2, 1 / 4])
  np.testing.assert_array_equal(
    found.confusion, [[2, 1, 0], [1, 2, 0], [0] * 3]
  )


def test_overlap_equals_scikit_learn():
  rng = np.random.default_rng(0)
  true = rng.integers(0, 5, (4, 8, 9)).astype(np.uint8)
  true[rng.random(true.shape) < 0.1] = masks.IGNORED
  predicted = rng.integers(0, 6, true.shape)
  found = Overlap(4, 7)
  for number in range(4):
    found.add(number, predicted[number], true[number])
  known = true != masks.IGNORED
  expected = jaccard_score(true[known], predicted[known], average="macro")
  assert found.mean() == pytest.approx(expected, abs=1e-12)
  low, high = found.interval()
  assert low < found.mean() < high


def test_pixels_between_patches_are_bilinear():
  grid = Grid(4, 6, Square(24))
  values = np.random.default_rng(0).random((4, 4, 3)).astype(np.float32)
  found = grid.to_pixels(values, 24, 24)
  expected = jax.image.resize(values, (24, 24, 3), "bilinear")
  np.testing.assert_allclose(found, expected, atol=1e-6)
  tall = grid.to_pixels(values, 50, 13)
  np.testing.assert_allclose(
    tall.mean(axis=(0, 1)), values.mean(axis=(0, 1)), atol=0.1
  )
  # A border of less than a patch is seen by no patch.
  cut = Grid(4, 6, Square(27))
  assert cut.box(27, 27) == (0, 0, 24, 24)
  np.testing.assert_allclose(
    cut.to_pixels(values, 27, 27)[:24, :24], found, atol=1e-6
  )


@pytest.mark.parametrize("crop", ["none", "center", "longest"])
def test_patches_know_their_share_of_each_class(crop):
  rng = np.random.default_rng(0)
  mask = rng.integers(0, 3, (48, 72)).astype(np.uint8)
  mask[rng.random(mask.shape) < 0.2] = masks.IGNORED
  square = Square(24, "nearest", crop)
  grid = Grid(4, 6, square)
  counts = grid.classes(mask, 3)
  if crop == "longest":
    seen = np.full((24, 24), masks.IGNORED, np.uint8)
    seen[4:20] = masks.resize(mask, 16, 24)
  else:
    seen = masks.resize(mask, 24, 24, square.box(48, 72))
  for row in range(4):
    for column in range(4):
      cell = seen[6 * row : 6 * row + 6, 6 * column : 6 * column + 6]
      expected = [(cell == c).sum() for c in range(3)]
      np.testing.assert_array_equal(counts[row, column], expected)


def test_a_streamed_probe_equals_scikit_learn():
  rng = np.random.default_rng(0)
  y = rng.integers(0, 3, 90)
  x = rng.normal(size=(90, 5)) * [1, 2, 3, 1, 9] + rng.normal(size=(3, 5))[y]
  moments = _Moments(5, 4)  # One class is in no mask.
  for part in range(0, 90, 30):
    shares = 36 * np.eye(4)[y[part : part + 30]]
    moments.add(x[part : part + 30].astype(np.float32), shares)
  weights, bias = _solve(moments.sums, 4, 1e-9)
  judge = LinearDiscriminantAnalysis("lsqr").fit(x, y)
  scores = x @ weights + bias
  expected = judge.decision_function(x)
  np.testing.assert_allclose(
    scores[:, :3] - scores[:, :1], expected - expected[:, :1], atol=1e-4
  )
  assert (scores[:, 3] < -50).all()


def test_a_patch_of_two_classes_counts_for_both():
  rng = np.random.default_rng(0)
  x, shares = rng.normal(size=(40, 3)), rng.integers(0, 18, (40, 2))
  both, once = _Moments(3, 2), _Moments(3, 2)
  shares = np.concatenate([shares, 36 - shares.sum(axis=1)[:, None]], axis=1)
  shares[:, 0] += shares[:, 2]
  both.add(x.astype(np.float32), shares[:, :2].astype(float))
  # As if each pixel were a row of its own.
  pixels = np.repeat(x, 36, axis=0)
  labels = np.concatenate([np.repeat([0, 1], row[:2]) for row in shares])
  once.add(pixels.astype(np.float32), np.eye(2)[labels])
  for found, expected in zip(
    _solve(both.sums, 2, 0.1), _solve(once.sums, 2, 0.1), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
  """A model of random weights that reads scenes, and 40 of them in a folder."""
  folder = tmp_path_factory.mktemp("scenes")
  for name in ("images", "masks"):
    (folder / name).mkdir()
  for index in range(40):
    scene = scenes_draw.train_example(index)
    (folder / "images" / f"{index:02}.png").write_bytes(scene.image)
    (folder / "masks" / f"{index:02}.png").write_bytes(scene.mask)
  config = model_cases.model_config(
    image=dict(size="mu/8", image_size=64, depth=2),
    text=dict(vocab_size=36, length=12),
  )
  params = model_cases.random_params(make_model(config))
  model_cases.save_model(folder / "model", params, config, model_cases.SCENES)
  return folder


def _evaluate(scenes, section):
  section.path = str(scenes)
  section.batch_size = 4
  model = big_siglip.load(scenes / "model")
  return big_siglip.evaluate(model, ConfigDict({"one": section}))["one"]


def assert_drawn(result, folder):
  """A chart, and a sheet of examples, are there and not blank."""
  opened = functools.partial(open_source, "folder", "all", str(folder))
  for picture in (pictures.chart("one", result), samples.sheet(opened, result)):
    assert picture.dtype == np.uint8 and min(picture.shape[:2]) > 250
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50, "it is blank"


SHAPES = "configs/classes/scenes_shapes.json"


@pytest.mark.parametrize(
  ("kind", "at"),
  [("text", {}), ("value", {"size": 96}), ("text", {"size": 96, "stride": 32})],
)
def test_segmentation_by_prompts(scenes, kind, at):
  patches = {} if kind == "text" else {"patches": kind}  # Text is the default.
  result = _evaluate(
    scenes,
    dense.segmentation(
      split="all", classes_file=SHAPES, baselines=not at, **at, **patches
    ),
  )
  metrics = result.metrics
  assert result.images == 40
  assert metrics["skipped"] == 0
  # Squares of 8 pixels cannot draw stars, but nearly all of a background.
  assert 0.5 < metrics["ceiling_miou"] < 0.95
  assert metrics["miou"] <= metrics["best_miou"] < metrics["ceiling_miou"]
  assert set(result.details["iou"]) == {"background", *scenes_draw.PLURALS}
  table = result.rows()
  assert table["key"][:2] == ["images/00.png", "images/01.png"]
  # By hand: every pixel's class is that of the largest interpolated cosine.
  model = big_siglip.load(scenes / "model")
  names = list(scenes_draw.PLURALS)
  found = Overlap(40, 6)
  least = metrics["best_threshold"]
  of_class = model.embed_texts(names)
  for i in range(40):
    image = Image.open(scenes / "images" / f"{i:02}.png")
    patches = model.embed_patches([image], kind=kind, **at)[0]
    scores = jax.image.resize(patches @ of_class.T, (64, 64, 5), "bilinear")
    scores = np.asarray(scores)
    label = np.where(scores.max(-1) >= least, scores.argmax(-1) + 1, 0)
    mask = np.asarray(Image.open(scenes / "masks" / f"{i:02}.png"))
    true = np.where(mask, (mask.astype(int) - 1) % 5 + 1, 0)
    found.add(i, label, true.astype(np.uint8))
  assert found.mean() == pytest.approx(metrics["best_miou"], abs=2e-3)
  confusion = np.array(result.details["confusion"])
  assert confusion.sum() == 40 * 64 * 64
  assert confusion.trace() / confusion.sum() == metrics["pixel_accuracy"]
  ceiling = result.details["ceiling_iou"].values()
  assert np.mean(list(ceiling)) == pytest.approx(metrics["ceiling_miou"])
  # The first images are kept with what was predicted of them.
  few = Overlap(40, 6)
  for example in result.examples:
    few.add(example.number, example.predicted, example.true)
  kept = few.counts[:, 2].any(axis=-1)
  assert kept.sum() == 8
  np.testing.assert_allclose(
    few.image_means()[kept], np.array(table["miou"])[kept]
  )
  assert_drawn(result, scenes)


@pytest.mark.parametrize(
  "make", [dense.segmentation_probe, dense.patch_retrieval]
)
def test_what_is_learnt_from_masks_is_better_than_nothing(scenes, make):
  result = _evaluate(scenes, make(classes_file=COLOURS))
  metrics = result.metrics
  assert metrics["ceiling_miou"] > 0.4
  assert metrics["raw_miou"] > 0.2
  assert metrics["miou"] > 0.15  # All background: 0.13.
  assert 0 < result.images < 40  # The held-out tenth, and a bit by lot.
  assert result.intervals["miou"][0] <= metrics["miou"]
  assert_drawn(result, scenes)


COLOURS = "configs/classes/scenes_colours.json"


def test_correspondence_finds_what_can_be_told_apart(scenes, tmp_path):
  """No two places of these images have a colour in common."""
  ramp = np.linspace(0, 255, 96).round().astype(np.uint8)
  for number in range(6):
    image = np.full((96, 96, 3), 40 * number, np.uint8)
    image[..., 0], image[..., 1] = ramp[:, None], ramp[None]
    Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / f"{number}.txt").write_text("a ramp")
  shutil.copytree(scenes / "model", tmp_path / "model")
  result = _evaluate(tmp_path, dense.correspondence(split="all"))
  metrics = result.metrics
  assert metrics["ceiling_pck@0.1"] == 1.0  # Patches are an eighth wide.
  assert metrics["ceiling_pck@0.05"] < 0.7
  assert metrics["raw_pck@0.1"] > 0.8
  assert metrics["position_pck@0.1"] < 0.5
  assert set(result.scores) == {"pck@0.1", "pck@0.05"}
  assert_drawn(result, tmp_path)
  # What is kept of the first photos gives their figures again.
  for example in result.examples:
    error = np.linalg.norm(example.found - example.truth, axis=1)
    assert result.scores["pck@0.1"].value[example.number] == np.mean(
      error <= 0.1
    )
    assert example.whole.shape == example.crop.shape == (64, 64, 3)
  # Tables of all kinds hold the numbers.
  file = epath.Path(tmp_path / "rows.parquet")
  rows.write(file, result.rows())
  assert pq.read_table(file)["pck@0.1"].type == "double"


def test_the_truth_of_a_crop_is_where_its_pixels_are():
  """Down and right are colours of the image, so that pixels tell places."""
  ramp = np.linspace(0, 255, 96).round().astype(np.uint8)
  image = np.zeros((96, 96, 3), np.uint8)
  image[..., 0], image[..., 1] = ramp[:, None], ramp[None]
  preprocess = Preprocess(
    Preprocessing(48, "bilinear", None, None, None, None, None), None
  )
  grid = Grid(8, 6, preprocess.value.square())
  for number in range(5):
    image[0, 0, 2] = number  # Another crop by lot.
    example = Example(image.copy(), ("a",), "n")
    made = show_twice(example, preprocess, grid, 0.3)
    cells = made["other"].reshape(8, 6, 8, 6, 3).mean(axis=(1, 3))
    seen = cells.reshape(64, 3)[:, :2] / 255
    np.testing.assert_allclose(made["truth"], seen, atol=0.02)


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    (dict(), "classes_file=None: must name the values of the masks"),
    (dict(classes_file=SHAPES, background="sky"), "background='sky': must be"),
    (dict(classes_file=SHAPES, ignore=(300,)), "ignore=(300,): must be values"),
    (dict(classes_file=SHAPES, ignore=tuple(range(31))), "leaves no class"),
    (
      dict(classes_file=SHAPES, ignore=(0,)),
      "background='background'",
    ),
    (dict(classes_file=SHAPES, layer=5), "layer=5: must be 1 ... 2"),
    (dict(classes_file=SHAPES, size=99), "size=99: must be 64, as the model"),
    (dict(classes_file=SHAPES, stride=99), "stride=99: must be a multiple"),
    (dict(classes_file=SHAPES, mask_key="depth"), "has no such field|missing"),
  ],
)
def test_mistakes_name_the_field(scenes, fields, said):
  with pytest.raises(UserError) as error:
    _evaluate(scenes, dense.segmentation(split="all", **fields))
  assert any(part in str(error.value) for part in said.split("|"))
  assert len(str(error.value).splitlines()) == 1


def test_a_bad_mask_is_left_out_and_counted(scenes, tmp_path, caplog):
  for name in ("images", "masks"):
    shutil.copytree(scenes / name, tmp_path / name)
  Image.new("L", (64, 64), 99).save(tmp_path / "masks" / "00.png")
  Image.new("L", (32, 32)).save(tmp_path / "masks" / "01.png")
  Image.new("RGB", (64, 64), "red").save(tmp_path / "masks" / "02.png")
  shutil.copytree(scenes / "model", tmp_path / "model")
  section = dense.segmentation(
    split="all", classes_file=SHAPES, baselines=False
  )
  result = _evaluate(tmp_path, section)
  assert result.metrics["skipped"] == 3
  assert result.rows()["note"][:4] == ["cannot be read"] * 3 + [None]
