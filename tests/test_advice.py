"""What a run is told before it trains, and whether images are held out."""

import csv

import numpy as np
from PIL import Image
import pytest
import runs

from big_siglip import training_data
from big_siglip.command_line import load_config
from big_siglip.run import advice
from configs import base


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Forty images with two captions each."""
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  rows = [("image", "caption")]
  for number in range(40):
    pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")
    rows += [(f"{number}.png", f"{text} {number}") for text in ("a", "one")]
  with (folder / "captions.csv").open("w", newline="") as file:
    csv.writer(file).writerows(rows)
  return folder


def told(photos, *changes):
  """Returns what is said of configs/folder.py on all of the photos."""
  changes = (f"data.path={photos}", "data.split=all", *changes)
  flags = [f"--config.{change}" for change in changes]
  config = load_config(str(runs.ROOT / "configs" / "folder.py"), flags)
  source = training_data.train_source(config)
  return list(advice.lines(config, source))


SENSE = ("batch_size=40", "total_steps=100", "evals.photos.path=other")


def test_a_run_of_good_sense_is_told_nothing(photos):
  assert told(photos, *SENSE) == []


@pytest.mark.parametrize("captions", ["random", "all"])
def test_a_batch_larger_than_the_data_is_told(photos, captions):
  more = (f"data.captions={captions}", "batch_size=41", "total_steps=30")
  (line,) = told(photos, *SENSE, *more)
  assert line.startswith("config.batch_size=41: is more than the 40 images, so")
  assert "config.loss.same=image" in line
  good = ("loss.duplicates=ignore", "loss.same=image")
  assert told(photos, *SENSE, *more, *good) == []
  # Equal texts are another matter.
  assert len(told(photos, *SENSE, *more, "loss.duplicates=ignore")) == 1


def test_a_source_that_is_smaller_than_its_share_is_told(photos):
  config = base.get_config()
  mixture = {
    name: {"name": "folder", "path": str(photos), "split": split, "weight": 1}
    for name, split in (("few", "test"), ("many", "train"))
  }
  config.data.update({"mixture": mixture})
  config.update({"batch_size": 30, "total_steps": 1})
  config.optimizer.warmup_steps = 0
  source = training_data.train_source(config)
  few = source.lengths[0]
  (line,) = advice.lines(config, source)
  assert few < 15
  assert f"is more than the {few} images of few, so that" in line


def test_more_than_a_hundred_epochs_are_told(photos):
  (line,) = told(photos, *SENSE, "total_steps=101")
  assert line == (
    "config.total_steps=101: goes 101 times through the data, which are likely "
    "to be learnt by heart; 100 times would be 100 steps"
  )


def test_schedules_that_hardly_fall_are_told(photos):
  (line,) = told(photos, *SENSE, "optimizer.warmup_steps=51")
  assert "warmup_steps=51: is more than half of config.total_steps=100" in line
  (line,) = told(photos, *SENSE, "optimizer.schedule=rsqrt")
  assert "timescale=10000: is not less than config.total_steps=100" in line


def test_images_that_are_trained_on_are_told(photos):
  same = (*SENSE, f"evals.photos.path={photos}/../{photos.name}/")
  for split in ("all", "test"):
    (line,) = told(photos, *same, f"evals.photos.split={split}")
    assert line.startswith("config.evals.photos: its images are trained on, so")
  assert told(photos, *same, "data.split=train", "batch_size=20") == []


@pytest.mark.parametrize(
  ("trained", "measured", "expected"),
  [
    (("folder", "p", "train"), ("folder", "p", "test"), "held out"),
    (("folder", "p", "train"), ("folder", "p", "train"), "trained on"),
    (("folder", "p", "all"), ("folder", "./p/", "test"), "trained on"),
    (("folder", "p", "test"), ("folder", "p", "all"), "in part trained on"),
    (("folder", "p", "train"), ("folder", "q", "test"), "of other data"),
    (("folder", "p", "train"), ("tar", "p", "all"), "of other data"),
    (("digits", None, "train"), ("digits", None, "test"), "held out"),
    (
      ("tfds", "p", "train[:90%]"),
      ("tfds", "p", "train[90%:]"),
      "perhaps trained on",
    ),
    (("tfds", "p", "train+val"), ("tfds", "p", "val"), "perhaps trained on"),
    (("tfds", "gs://a/b", "train"), ("tfds", "gs://a/b/", "val"), "held out"),
    (
      ("folder", "p", "train"),
      ("folder", "p", "val", "dataset_coco.json"),
      "perhaps trained on",
    ),
    (
      ("folder", "p", "train"),
      ("folder", "q", "val", "dataset_coco.json"),
      "of other data",
    ),
  ],
)
def test_whether_images_are_trained_on(trained, measured, expected):
  config = base.get_config()
  config.data.name, config.data.path, config.data.split = trained
  fields = ("data", "path", "split", "captions_file")
  spec = dict(zip(fields, measured, strict=False))
  assert training_data.trained_on(config, spec) == expected
