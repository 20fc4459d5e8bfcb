"""Starting from trained weights, in the program and piece by piece."""

import functools
import json

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import programs
import pytest
import runs

from big_siglip import build, loop
from big_siglip.data import vocabulary
from big_siglip.data.preprocessing import Preprocessing
from big_siglip.data.text import ByteTokenizer, make_tokenizer
from big_siglip.errors import UserError
from big_siglip.metrics import read_metrics
from big_siglip.models import merged, SigLIP
from big_siglip.run import workdir
from big_siglip.trained import finetuning, initial, saved

TRAINED = {
  "model__image__pooling": "map",
  "model__text__vocab_size": 300,
  "total_steps": 3,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A model folder of parameters that no seed draws."""
  folder = tmp_path_factory.mktemp("initial") / "trained"
  config = runs.config(**TRAINED, seed=7)
  params = _random(config, build.mesh(config), seed=7)
  saved.save_model(
    epath.Path(folder), params, config.model, Preprocessing.of(config)
  )
  return folder, runs.flatten(params)


def _start(**changes):
  config = runs.config(**TRAINED)
  for field, value in changes.items():
    config.update_from_flattened_dict({field.replace("__", "."): value})
  mesh = build.mesh(config)
  random = _random(config, mesh, seed=0)
  started = initial.initial_params(config, random, mesh)
  return config, runs.flatten(started), runs.flatten(random)


def _random(config, mesh, seed):
  """Returns parameters of any numbers: what draws them need not compile."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jax.device_put(
      rng.normal(size=x.shape).astype(x.dtype), x.sharding
    ),
    build.program(config, mesh).abstract_state.params,
  )


def test_both_towers_are_taken_with_scale_and_bias(trained):
  folder, params = trained
  _, started, _ = _start(init__path=str(folder))
  runs.assert_same(started, params)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_tower_leaves_the_other_random(trained, tower):
  folder, params = trained
  _, started, random = _start(init__path=str(folder), init__towers=tower)
  for path, array in started.items():
    source = params if path.startswith(f"{tower}/") else random
    np.testing.assert_array_equal(array, source[path], err_msg=path)


def test_blocks_may_be_stacked_or_not(trained):
  folder, params = trained
  config = runs.config(**TRAINED)
  scan = not config.model.scan
  config, started, _ = _start(init__path=str(folder), model__scan=scan)
  image = np.zeros((1, 16, 16, 3), np.float32)
  text = np.ones((1, 16), np.int32)

  def apply(model, flat):
    tree = {}
    for path, array in flat.items():
      *folders, name = path.split("/")
      place = tree
      for part in folders:
        place = place.setdefault(part, {})
      place[name] = array
    return jax.jit(SigLIP(model).apply)({"params": tree}, image, text)

  other = ConfigDict(config.model.to_dict())
  other.scan = not scan
  for got, wanted in zip(
    apply(config.model, started), apply(other, params), strict=True
  ):
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_resolution_length_and_vocabulary_may_change(trained, caplog):
  folder, params = trained
  changes = {
    "model__image__image_size": 32,
    "model__text__length": 20,
    "model__text__vocab_size": 400,
  }
  _, started, random = _start(init__path=str(folder), **changes)
  adapted = {
    "image/position_embedding",
    "text/position_embedding",
    "text/token_embedding/embedding",
  }
  for path, array in started.items():
    assert array.shape == random[path].shape
    if path not in adapted:
      np.testing.assert_array_equal(array, params[path], err_msg=path)
  old, new = (x["text/position_embedding"] for x in (params, started))
  np.testing.assert_array_equal(new[[0, -1]], old[[0, -1]])
  for path in adapted:
    assert path in caplog.text


def test_a_new_tokenizer_keeps_what_both_know(trained, tmp_path, caplog):
  folder, params = trained
  file = tmp_path / "mine.model"
  texts = ["a dog runs on the beach", "two cats beside the window"] * 9
  vocabulary.train(texts, file, vocab_size=300)
  path = "text/token_embedding/embedding"
  for size in (300, 310):  # As many embeddings as the weights have, and more.
    _, started, random = _start(
      init__path=str(folder),
      data__tokenizer=str(file),
      model__text__vocab_size=size,
    )
    new = make_tokenizer(str(file)).vocabulary()
    known = {name: new[name] for name in ("</s>", "<0x41>", "<0xFF>")}
    for name, number in known.items():
      old = params[path][ByteTokenizer().vocabulary()[name]]
      np.testing.assert_array_equal(started[path][number], old)
    np.testing.assert_array_equal(
      started[path][new["a"]], random[path][new["a"]]
    )
    assert f"is not that of the weights: 259 of {size} embed" in caplog.text


def test_other_preprocessing_is_said(trained, caplog):
  folder, _ = trained
  _start(init__path=str(folder), data__resize="bicubic", data__pad_id=0)
  assert "config.data.resize='bicubic'" in caplog.text
  assert "config.data.pad_id=0, not 1, as the weights of" in caplog.text


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"init__path": "nowhere"}, "nowhere: no such file or folder"),
    ({"model__image__mlp_dim": 96}, "mlp/up/kernel has shape"),
    ({"model__text__depth": 2}, "and config.model wants"),
    ({"model__image__head": True}, "has no image/head/kernel"),
    ({"model__image__pooling": "gap"}, "has no place in config.model"),
  ],
)
def test_weights_that_do_not_fit_are_named(trained, changes, said):
  folder, _ = trained
  with pytest.raises(UserError) as error:
    _start(**{"init__path": str(folder), "model__scan": True, **changes})
  assert said in str(error.value)


def test_an_adaptation_is_part_of_the_weights(tmp_path):
  config = runs.config(**TRAINED, model__lora__rank=2)
  mesh = build.mesh(config)
  params = _random(config, mesh, seed=1)
  saved.save_model(
    epath.Path(tmp_path / "lora"),
    params,
    config.model,
    Preprocessing.of(config),
  )
  expected = runs.flatten(merged(params, config.model))
  for rank in (0, 4):  # A new adaptation adds nothing yet.
    changed, started, random = _start(
      init__path=str(tmp_path / "lora"), model__lora__rank=rank
    )
    for path, leaf in expected.items():
      np.testing.assert_allclose(started[path], leaf, rtol=1e-6)
    for path in started.keys() - expected.keys():
      np.testing.assert_array_equal(started[path], random[path])


def test_a_run_starts_there_evaluates_first_and_reports(trained, tmp_path):
  folder, params = trained
  changes = {**TRAINED, "init.path": str(folder), "total_steps": 6}
  changes["optimizer.rules"] = '(("image/.*", {"freeze": True}),)'
  changes = {key.replace(".", "__"): value for key, value in changes.items()}
  status, output = programs.train(tmp_path / "run", **changes)
  assert status == 0, output
  accuracy = [
    line["evals/test/accuracy"]
    for line in read_metrics(tmp_path / "run")
    if "evals/test/accuracy" in line
  ]
  assert len(accuracy) == 2, "before the first step and after the last"
  report = json.loads((tmp_path / "run" / "finetuning.json").read_text())
  assert report["evaluations"]["evals/test/accuracy"] == {
    "before": accuracy[0],
    "after": accuracy[1],
  }
  moved = report["relative_change"]
  assert moved["image/encoder"] == 0, "frozen"
  assert 0 < moved["text/encoder"] < 1
  assert "moved by" in output
  state, _ = runs.final_state(tmp_path / "run", **changes)
  for path, array in params.items():
    if path.startswith("image/"):
      np.testing.assert_array_equal(state[f"params/{path}"], array)


@pytest.mark.parametrize("there", [True, False])
def test_the_report_fails_no_run_at_its_end(trained, tmp_path, there):
  folder, _ = trained
  path = str(folder if there else tmp_path / "gone")
  config = runs.config(**TRAINED, init__path=path)
  mesh = build.mesh(config)
  random = functools.partial(_random, config, mesh, seed=0)
  lines = [{"step": 0, "evals/test/x": 0.5}, {"step": 3, "evals/test/x": None}]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text)
  said = finetuning.report(config, random(), random, mesh, epath.Path(tmp_path))
  if there:  # A metric that is not finite is null in the files.
    written = json.loads((tmp_path / "finetuning.json").read_text())
    expected = {"before": 0.5, "after": None}
    assert written["evaluations"]["evals/test/x"] == expected
    assert written["images"] == {"test": "held out"}
    words = ["evals/test/x", "0.5000", "nan", "held", "out"]
    assert said.splitlines()[1].split() == words
  else:
    assert said.startswith(f"finetuning.json is not written: {path}: no such")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "finetuning.json").exists()


def test_a_run_that_ends_in_its_first_evaluation_may_be_mended(
  trained, tmp_path
):
  """The mistake shows in the data alone, and names the evaluation."""
  folder, _ = trained
  pairs = tmp_path / "pairs"
  pairs.mkdir()
  Image.new("RGB", (8, 8)).save(pairs / "a.png")
  (pairs / "captions.csv").write_text("image,caption\na.png,one\n")
  config = runs.config(**TRAINED, init__path=str(folder))
  with config.unlocked():
    config.evals = {
      "pairs": {
        "kind": "calibration",
        "data": "folder",
        "path": str(pairs),
        "split": "all",
        "every": 3,
        "batch_size": 1,
        "image_key": None,
        "text_keys": (),
        "prior": None,
        "captions_file": None,
        "max_captions": None,
        "language": None,
      }
    }
  run = str(tmp_path / "run")
  with pytest.raises(UserError, match=r"^config\.evals\.pairs: calibration"):
    loop.train(config, run)
  mended = runs.config(**TRAINED, init__path=str(folder), seed=5)
  assert workdir.read_config(workdir.claim(run, mended))["seed"] == 5
