"""What a config leaves to the weights, and what a start would say of them."""

import csv
import json
import shutil

import model_cases
import numpy as np
from PIL import Image
import pytest
import runs

from big_siglip import build, loop
from big_siglip.command_line import load_config
from big_siglip.config import find_problems
from big_siglip.errors import UserError
from big_siglip.plan import dry_run
from big_siglip.run import workdir
from big_siglip.schema.fields import unset_fields
from big_siglip.trained import from_init
from big_siglip.weights import export

CONFIGS = (
  *("finetune", "finetune_labels"),
  *("lora", "lit", "unlocked", "lit_precomputed"),
)
DATA = {
  "tokenizer": "configs/scenes.model",
  "lowercase": False,
  "clean": "html",
  "pad_id": 0,
  "resize": "big_vision",
}


@pytest.fixture(scope="module")
def made():
  config = runs.config(
    model__image__pooling="map", model__text__vocab_size=300, seed=7
  )
  params = build.program(config, build.mesh(config)).init_params()
  return params, config.model


@pytest.fixture
def weights(made, tmp_path):
  model_cases.save_model(tmp_path / "weights", *made, DATA)
  return tmp_path / "weights"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  names = [f"{number:02}.png" for number in range(20)]
  for name in names:
    pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
  with (folder / "captions.csv").open("w", newline="") as file:
    rows = [(name, f"noise {name}") for name in names]
    csv.writer(file).writerows([("image", "caption"), *rows])
  return folder


def _load(name, weights, *overrides):
  flags = [f"--config.{o}" for o in (f"init.path={weights}", *overrides)]
  return load_config(str(runs.ROOT / "configs" / f"{name}.py"), flags)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_config_does_not_set_is_that_of_the_weights(name, made, weights):
  config, lines = from_init.fill(_load(name, weights))
  _, model = made
  assert workdir.as_json(config)["model"]["image"] == json.loads(
    model.image.to_json()
  )
  new_text = name in ("lit", "unlocked", "lit_precomputed")
  for field, value in model.text.items():
    own = new_text and field not in ("length", "vocab_size")
    assert (config.model.text[field] == value) != own or field in (
      "head",
      "pooling",
    )
  kept = {**DATA, "tokenizer": f"{weights}/tokenizer.model"}
  assert {field: config.data[field] for field in DATA} == kept
  assert config.is_locked and not find_problems(config)
  assert len(lines) == 3 and all(str(weights) in line for line in lines)
  assert "size='Ti/16', image_size=16, pooling='map'" in lines[0]
  assert "resize='big_vision'" in lines[2]


def test_what_is_set_wins(weights):
  config, lines = from_init.fill(
    _load(
      "finetune",
      weights,
      "model.image.image_size=32",
      "model.image.depth=3",
      "model.text.size=B",
      "data.tokenizer=bytes",
      "data.pad_id=1",
    )
  )
  assert config.model.image.image_size == 32
  assert config.model.image.depth == 3
  assert config.model.image.width == 32, "of the weights"
  assert config.model.text.width is None, "of the named size"
  assert config.data.tokenizer == "bytes" and config.data.pad_id == 1
  assert config.data.clean == "html"
  assert "image_size" not in lines[0] and "tokenizer" not in lines[2]


def test_a_config_that_sets_all_is_left_alone():
  config = runs.config(init__path="nowhere")
  assert from_init.fill(config) == (config, [])


def test_a_run_goes_by_its_own_config_once_it_has_begun(weights, tmp_path):
  config = _load("finetune", weights)
  first, _ = from_init.fill(config, str(tmp_path / "run"))
  folder = workdir.claim(str(tmp_path / "run"), first)
  before = (folder / "config.json").read_bytes()
  same, lines = from_init.fill(config, str(folder))
  assert lines and same.data.tokenizer == f"{weights}/tokenizer.model"
  (folder / "checkpoints" / "1").mkdir(parents=True)
  shutil.rmtree(weights)
  again, lines = from_init.fill(config, str(tmp_path / "run"))
  assert not lines and not unset_fields(again)
  assert again.data.tokenizer == str(folder / "tokenizer.model")
  workdir.claim(str(tmp_path / "run"), again)
  assert (folder / "config.json").read_bytes() == before
  with pytest.raises(UserError, match="config.init.path=.*: no such file"):
    from_init.fill(config, str(tmp_path / "other"))


def test_mistakes_show_once_the_config_is_whole(weights):
  with pytest.raises(UserError, match="image_size=33: must be a multiple"):
    from_init.fill(_load("finetune", weights, "model.image.image_size=33"))
  file = weights / "config.json"
  config = json.loads(file.read_text())
  del config["data"]["resize"]
  file.write_text(json.dumps(config))
  with pytest.raises(UserError, match=r"config.data.resize=None: must be set"):
    from_init.fill(_load("finetune", weights))


def test_weights_without_a_tokenizer_take_the_one_that_is_named(made, tmp_path):
  params, model = made
  config = runs.config()
  with config.unlocked():
    config.model = model
  file = tmp_path / "weights.npz"
  export.FORMATS["big_vision"](file, params, config)
  for beside in tmp_path.glob("weights.*"):
    if beside != file:
      beside.unlink()
  with pytest.raises(UserError, match="name one: config.data.tokenizer=FILE"):
    from_init.fill(_load("finetune", file))
  config, _ = from_init.fill(_load("finetune", file, "data.tokenizer=bytes"))
  assert config.data.tokenizer == "bytes"
  assert config.data.resize == "big_vision"


def _settings(photos):
  every = ("data.split=all", "evals.photos.split=all")
  return (f"data.path={photos}", "batch_size=8", "total_steps=2", *every)


def test_a_dry_run_says_what_a_start_would(weights, photos, tmp_path, capsys):
  config = _load(
    "lit", weights, *_settings(photos), "model.image.image_size=24"
  )
  dry_run.run(config, str(tmp_path / "run"))
  said = capsys.readouterr().out
  assert "model.image: size='Ti/16', pooling='map'" in said
  assert "holds no checkpoint; training starts at step 0" in said
  assert "the others start at random" in said
  assert "image/position_embedding is resampled from [4, 32] to [9, 32]" in said
  assert "data: 20 examples; after all steps, epochs 0.80" in said
  assert "note: config.evals.photos: its images are trained on" in said
  assert "evals.photos: retrieval on folder: opened" in said
  assert not (tmp_path / "run").exists()


def test_a_dry_run_goes_on_without_data(weights, capsys):
  dry_run.run(_load("finetune", weights))
  said = capsys.readouterr().out
  assert "data: not given (config.data.path=None" in said
  assert "evals.photos: retrieval on folder: not given" in said


def test_a_dry_run_makes_no_data_set(tmp_path, monkeypatch, capsys):
  config = runs.config()
  monkeypatch.setenv("BIG_SIGLIP_DATA", str(tmp_path / "data"))
  dry_run.run(config)
  said = capsys.readouterr().out
  assert "data: digits: drawn at the first start" in said
  assert "evals.test: classification on digits: drawn" in said
  assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (["model.image.mlp_dim=96"], "mlp/up/kernel has shape"),
    (["model.image.head=True"], "has no image/head/kernel"),
    (["data.path=nowhere"], "config.data.path"),
    (["evals.photos.split=no"], "config.evals.photos.split"),
    (["seed=3"], "is of another config"),
  ],
)
def test_a_dry_run_finds_what_a_start_would(
  weights, photos, tmp_path, changes, said
):
  first = _load("finetune", weights, *_settings(photos))
  folder = str(tmp_path / "run")
  config = _load("finetune", weights, *_settings(photos), *changes)
  if "seed=3" in changes:
    place = workdir.claim(folder, from_init.fill(first)[0])
    (place / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
  with pytest.raises(UserError) as error:
    dry_run.run(config, folder)
  assert said in str(error.value)


def test_a_dry_run_says_that_a_state_goes_on(short_run, capsys):
  settings = {"init__path": str(short_run), "init__state": "all"}
  dry_run.run(runs.config(total_steps=12, **settings))
  said = capsys.readouterr().out
  assert "checkpoints/6: the whole state goes on" in said
  with pytest.raises(UserError, match="config.total_steps=6: must be above 6"):
    dry_run.run(runs.config(total_steps=6, **settings))


def test_training_asks_the_weights_before_anything_else(photos, tmp_path):
  config = _load("finetune", tmp_path / "none", *_settings(photos))
  with pytest.raises(UserError, match="config.init.path=.*none: no such file"):
    loop.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
