"""A trained model is found under whatever name it lies."""

import json
import os

import jax
from ml_collections import ConfigDict
import model_cases
import pytest

from big_siglip import sharding
from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import UserError
from big_siglip.evaluation import results
from big_siglip.models import SigLIP
from big_siglip.run import workdir
from big_siglip.trained import saved


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """Returns a model's folder with two checkpoints, 0 and 40."""
  folder = tmp_path_factory.mktemp("saved") / "model"
  config = model_cases.model_config({}, dict(vocab_size=259), embed_dim=32)
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  data = dict(
    resize="bilinear", tokenizer="bytes", lowercase=True, clean="none", pad_id=1
  )
  whole = ConfigDict(dict(model=config, data=data))
  place = workdir.absolute(str(folder))
  saved.save_model(place, params, config, Preprocessing.of(whole))
  steps = folder / "checkpoints"
  (steps / "0").rename(steps / "40")
  saved.save_params(place / "checkpoints" / "0", params)
  return folder


@pytest.mark.parametrize(
  "name",
  [
    "7",
    "384",
    "20261128",
    "2026.11.28",
    "run.7",
    "checkpoints",
    "checkpoints/7",
    "４２",
  ],
)
def test_a_run_may_have_any_name(model, tmp_path, monkeypatch, name):
  run = tmp_path / "runs" / name
  run.parent.mkdir(parents=True, exist_ok=True)
  model.rename(run)
  try:
    monkeypatch.chdir(run)
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "8").symlink_to(run)
    newest, first = run / "checkpoints" / "40", run / "checkpoints" / "0"
    (tmp_path / "best").symlink_to(first)
    for path, wanted in (
      (run, newest),
      (f"{run}/", newest),
      (".", newest),
      (f"{run}/../{run.name}", newest),
      (tmp_path / "link", newest),
      (tmp_path / "8", newest),
      (run / "checkpoints", newest),
      ("checkpoints/", newest),
      ("checkpoints/0", first),
      (f"{first}/", first),
      (tmp_path / "8" / "checkpoints" / "0", first),
      (tmp_path / "best", first),
    ):
      assert saved.is_run(str(path)), path
      found_run, found = saved.find(str(path))
      real = tuple(map(os.path.realpath, (found_run, found)))
      assert real == (str(run), str(wanted)), path
      assert saved.open_model(str(path))[0] == found
    config, params = saved.load(str(run), sharding.make_mesh())
    assert config.model.text.vocab_size == 259
    assert "logit_scale" in params
    with pytest.raises(UserError, match="checkpoints/99: no such checkpoint"):
      saved.find("checkpoints/99")
  finally:
    run.rename(model)


def test_checkpoints_may_lie_on_another_disk(model, tmp_path):
  run, disk = tmp_path / "12", tmp_path / "disk"
  run.mkdir()
  disk.mkdir()
  (model / "checkpoints").rename(disk / "12_steps")
  try:
    (run / "checkpoints").symlink_to(disk / "12_steps")
    config = json.loads((model / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config))
    for name in ("", "checkpoints", "checkpoints/40"):
      found = saved.find(str(run / name))
      assert tuple(map(str, found)) == (f"{run}", f"{run}/checkpoints/40")
  finally:
    (disk / "12_steps").rename(model / "checkpoints")


def test_a_scale_that_overflowed_is_refused(model, tmp_path):
  config = saved.load_config(workdir.absolute(str(model)))
  mesh = sharding.make_mesh()
  params = saved.load_params(saved.find(str(model))[1], config, mesh)
  folder = workdir.absolute(str(tmp_path / "model"))
  preprocessing = Preprocessing.of(config)
  broken = {**params, "logit_scale": jax.numpy.float32(112.3)}
  saved.save_model(folder, broken, config.model, preprocessing)
  with pytest.raises(UserError) as error:
    saved.load(str(folder), mesh)
  assert str(error.value).startswith(
    f"{folder}/checkpoints/0: logit_scale=112.3: must be the logarithm"
  )


def test_weights_of_others_in_folders_of_digits_are_no_run(tmp_path):
  for name in ("384", "checkpoints/500", "checkpoints"):
    folder = tmp_path / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"")
    assert not saved.is_run(str(folder))
    assert not saved.is_run(str(tmp_path / "384" / "7"))
  assert not saved.is_run("someone/7")
  path = workdir.absolute(str(tmp_path / "384"))
  assert results.step_of(path) == 0


def test_a_models_parameters_are_not_compressed(tmp_path):
  """It would save little, and reading takes twice as long."""
  params = {"a": jax.numpy.zeros((512, 512))}
  saved.save_params(workdir.absolute(str(tmp_path)), params)
  files = [file for file in tmp_path.rglob("*") if file.is_file()]
  assert sum(file.stat().st_size for file in files) >= 2**20
