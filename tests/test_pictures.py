"""What training draws of its evaluations."""

import numpy as np
import runs

from big_siglip import build, sharding
from big_siglip.evaluation.training import Evaluations


def _drawn(config):
  mesh = sharding.make_mesh()
  made = Evaluations.of(config, mesh)
  params = build.program(config, build.mesh(config)).init_params()
  (name,) = made.due(config.total_steps, -1)
  return made.pictures({name: made.run(name, params, config.total_steps)})


def test_a_chart_and_the_images_that_are_wrong():
  drawn = _drawn(runs.config(logging__pictures=True))
  assert set(drawn) == {"evals/test/chart", "evals/test/samples"}
  for picture in drawn.values():
    height, width, channels = picture.shape
    assert picture.dtype == np.uint8 and channels == 3
    assert min(height, width) > 300
    assert len(np.unique(picture)) > 10, "it is blank"


def test_pictures_can_be_left_out(monkeypatch):
  made = Evaluations(runs.config(logging__pictures=False), {})
  assert made.pictures({"test": None}) == {}


def test_a_picture_that_cannot_be_drawn_ends_no_run(caplog):
  made = Evaluations(runs.config(logging__pictures=True), {})
  assert made.pictures({"test": None}) == {}
  assert "evals/test/chart is not drawn" in caplog.text


def test_what_is_due():
  config = runs.config()
  made = Evaluations(config, {"test": None})
  assert made.due(30, 0) == ["test"] and made.due(31, 0) == []
  assert made.due(60, 30) == ["test"], "the last step is evaluated"
  assert made.due(30, 30) == [] and made.due(0, -1) == []
