"""One folder, one run."""

import json

import pytest
import runs

from big_siglip.errors import UserError
from big_siglip.run import workdir


def _trained(folder):
  """Makes a folder look as after a first checkpoint."""
  (folder / "checkpoints" / "5").mkdir(parents=True)


def test_a_new_folder_gets_the_config(tmp_path):
  config = runs.config()
  folder = workdir.claim(str(tmp_path / "a" / "run"), config)
  assert workdir.read_config(folder) == workdir.as_json(config)
  assert [p.name for p in folder.iterdir()] == ["config.json"]


def test_the_same_config_may_come_again(tmp_path):
  for _ in range(2):
    workdir.claim(str(tmp_path), runs.config())


def test_what_does_not_decide_the_parameters_may_change(tmp_path):
  workdir.claim(str(tmp_path), runs.config())
  changed = runs.config(log_every=5, mesh__fsdp=2, evals__test__every=4)
  workdir.claim(str(tmp_path), changed)
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["mesh"]["fsdp"] == 2


def test_every_field_that_differs_is_named(tmp_path):
  workdir.claim(str(tmp_path), runs.config())
  _trained(tmp_path)
  before = (tmp_path / "config.json").read_bytes()
  other = runs.config(seed=3, optimizer__learning_rate=0.5)
  with pytest.raises(UserError, match="is of another config") as error:
    workdir.claim(str(tmp_path), other)
  assert "config.seed: 0 -> 3" in str(error.value)
  assert "config.optimizer.learning_rate: 0.001 -> 0.5" in str(error.value)
  assert len(str(error.value).splitlines()) == 3
  assert (tmp_path / "config.json").read_bytes() == before


def test_rules_survive_json(tmp_path):
  config = runs.config()
  config.optimizer.rules = (("image/.*", {"freeze": True}),)
  folder = workdir.claim(str(tmp_path), config)
  rules = workdir.read_config(folder)["optimizer"]["rules"]
  assert rules == [["image/.*", {"freeze": True}]]
  workdir.claim(str(tmp_path), config)


@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_its_place_is_an_error(tmp_path, below):
  (tmp_path / "file").write_text("")
  folder = tmp_path / "file" / "run" if below else tmp_path / "file"
  with pytest.raises(UserError, match="--workdir=.*file") as error:
    workdir.claim(str(folder), runs.config())
  assert len(str(error.value).splitlines()) == 1


def test_a_folder_without_a_run_or_with_a_broken_one(tmp_path):
  folder = workdir.epath.Path(tmp_path)
  with pytest.raises(UserError, match="config.json is missing"):
    workdir.read_config(folder)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match="not JSON"):
    workdir.read_config(folder)


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
  path = workdir.epath.Path(tmp_path) / "file"
  workdir.write_whole(path, "old")

  def killed(self, target):
    raise KeyboardInterrupt

  monkeypatch.setattr(type(path), "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    workdir.write_whole(path, "new")
  assert path.read_text() == "old"


def test_a_run_that_never_trained_binds_nobody(tmp_path):
  """It ended for its weights or its data, and the command is corrected."""
  piece = tmp_path / "other.json"
  piece.write_text('{"not": "read"}')
  run = tmp_path / "run"
  workdir.claim(str(run), runs.config(seed=1))
  workdir.keep_tokenizer(run, str(piece))
  (run / "metrics.jsonl").write_text('{"step": 0, "evals/test/accuracy": 1}\n')
  (run / "tensorboard").mkdir()
  other = runs.config(seed=2)
  workdir.claim(str(run), other)
  assert workdir.read_config(run)["seed"] == 2
  assert [p.name for p in run.iterdir()] == ["config.json"]
  # Steps that were taken are not mixed with others, saved or not.
  (run / "metrics.jsonl").write_text('{"step": 3, "loss": 2.5}\n')
  with pytest.raises(UserError, match="config.seed: 2 -> 1"):
    workdir.claim(str(run), runs.config(seed=1))


def test_copies_of_what_was_mended_since_are_made_anew(tmp_path):
  """A run that has not trained yet must not keep the first of two files."""
  config, data, run = runs.config(), tmp_path / "data", tmp_path / "run"
  data.mkdir()
  tokenizer = tmp_path / "mine.model"
  with config.unlocked():
    config.data.update(
      name="embeddings", path=str(data), tokenizer=str(tokenizer)
    )
  for content in ("first", "mended"):
    (data / "embedding.json").write_text(content)
    tokenizer.write_text(content)
    workdir.claim(str(run), config)
    assert (run / "embedding.json").read_text() == content
    assert (run / "tokenizer.model").read_text() == content
  _trained(run)
  tokenizer.write_text("of another run")
  workdir.claim(str(run), config)
  assert (run / "tokenizer.model").read_text() == "mended"


def test_a_file_of_the_users_own_is_never_cleared(tmp_path):
  tokenizer = tmp_path / "tokenizer.model"
  tokenizer.write_text("the only one")
  for seed in (1, 1, 2):
    config = runs.config(seed=seed)
    with config.unlocked():
      config.data.tokenizer = str(tokenizer)
    workdir.claim(str(tmp_path), config)
    assert tokenizer.read_text() == "the only one"
