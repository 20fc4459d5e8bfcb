"""The studies train as the program does and go on after a kill."""

import json

import jax
import numpy as np
import pytest
import runs
from scipy import stats

from big_siglip import build, sharding
from studies import batch_size, beta2, bias, duplicates, noise, training
from studies.data import OVERRIDES, problem
from studies.report import difference, interval
from studies.training import Cell

CELL = Cell("digits", "sigmoid", 16, 128)  # Of the studies' --quick.


@pytest.fixture(autouse=True)
def no_cache_of_programs():
  runs.scratch()  # Where the data sets lie.
  folder = jax.config.jax_compilation_cache_dir
  yield
  jax.config.update("jax_compilation_cache_dir", folder)


def lines(folder):
  text = (folder / "results.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_killed_study_goes_on_and_says_the_same(tmp_path, capsys):
  arguments = [f"--output={tmp_path}", "--quick"]
  bias.main(arguments)
  said = (tmp_path / "bias.md").read_text()
  assert said in capsys.readouterr().out
  assert said.count("\n| digits | 16 |") == 3 and "show" in said
  assert (tmp_path / "bias.png").read_bytes().startswith(b"\x89PNG")
  before = lines(tmp_path)
  assert len(before) == 3 * (2 + 2)

  # As if killed in the middle of writing the last training.
  file = tmp_path / "results.jsonl"
  file.write_text(file.read_text()[:-20])
  bias.main(arguments)
  assert (tmp_path / "bias.md").read_text() == said
  output = capsys.readouterr().out.splitlines()
  trained = [line for line in output if line.startswith("Cell")]
  assert len(trained) == 1, "what is there is not trained again"
  for old, new in zip(before, lines(tmp_path), strict=True):
    assert {**new, "seconds": 0} == {**old, "seconds": 0}

  (tmp_path / "models.json").write_text("{}")
  with pytest.raises(SystemExit):
    bias.main(arguments)
  assert "holds trainings of other models" in capsys.readouterr().err


def test_trainings_side_by_side_are_those_of_the_program():
  trained = training.train(CELL, (3e-3, 1e-2), (0, 1))
  config = training.make_config(CELL)
  config.seed = 1
  config.optimizer.learning_rate = 1e-2
  config.model.logit_bias_init = -float(np.log(15))
  mesh = build.mesh(config, jax.devices()[:1])
  program, data = build.program(config, mesh), problem("digits")
  state = program.init()
  images, owners, captions = training._order(CELL, 1, data.text.shape)
  for step in range(config.total_steps):
    batch = {
      "image": data.image[images[step]],
      "text": data.text[owners[step], captions[step]],
      "faults": np.zeros((16, 6), np.int32),
    }
    state, metrics = program.step(state, sharding.to_global(mesh, batch))
    np.testing.assert_allclose(trained.loss[1, step], metrics["loss"], 1e-4)
  assert np.all(trained.loss[0, 1:] != trained.loss[1, 1:])


@pytest.mark.slow
@pytest.mark.parametrize(
  "study", [batch_size, beta2, noise, duplicates], ids=lambda x: x.__name__
)
def test_every_study_runs_once(study, tmp_path, capsys):
  arguments = [f"--output={tmp_path}", "--quick"]
  study.main(arguments)
  assert "Cell(" in capsys.readouterr().out
  study.main(arguments)
  said = capsys.readouterr().out
  assert "Cell(" not in said, "nothing is trained again"
  name = study.__name__.split(".")[-1]
  assert (tmp_path / f"{name}.md").read_text() in said
  assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_an_interval_is_that_of_the_paired_t_test():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 5))
  records = [[{"test": x} for x in values] for values in (a, b)]
  mean, half = difference(*records)
  expected = stats.ttest_rel(a, b).confidence_interval(0.95)
  np.testing.assert_allclose((mean - half, mean + half), expected)
  assert difference(*records).sign == 0
  assert interval([1.0, 1.1, 1.2]).sign == 1
  assert interval([-1.0, -1.1, -1.2]).sign == -1
  assert interval([5.0]).sign == 0, "one value says nothing"


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_exchanged_captions_are_that_share_and_stay(share):
  cell = Cell("digits", "sigmoid", 20, 3_000, shuffled=share)
  images, owners, _ = training._order(cell, 0, (1_000, 6))
  assert images.shape == owners.shape == (150, 20)
  assert np.mean(images != owners) == share
  # Every epoch sees every image once, with the same caption owner.
  epochs = np.stack([images.ravel(), owners.ravel()]).reshape(2, 3, 1_000)
  for epoch in range(3):
    assert len(np.unique(epochs[0, epoch])) == 1_000
    order = np.argsort(epochs[0, epoch])
    np.testing.assert_array_equal(
      epochs[1, epoch][order], epochs[1, 0][np.argsort(epochs[0, 0])]
    )


def test_the_digits_are_split_in_three_and_every_caption_is_told_apart():
  data = problem("digits")
  counts = [
    len(x) for x in (data.image, data.validation.image, data.test.image)
  ]
  assert counts == [1_197, 240, 360]
  said = np.unique(data.text.reshape(-1, data.text.shape[-1]), axis=0)
  assert len(said) == 60
  assert said.max() < OVERRIDES["digits"]["model.text.vocab_size"]
  # Prompts are captions of the training set.
  assert all((said == prompt).all(axis=1).any() for prompt in data.test.text)
  perfect = np.eye(10, dtype=np.float32)
  text = np.repeat(perfect, 2, axis=0)
  # Each class embeds as itself: the score is the share of a digit.
  scores = [
    data.test.score(np.tile(perfect[k], (360, 1)), text) for k in range(10)
  ]
  np.testing.assert_allclose(sum(scores), 1.0)
