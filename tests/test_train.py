"""The trainer as a user starts it, and its loop in this process."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import programs
import pytest
import runs

from big_siglip import build, loop, metrics
from big_siglip.errors import RunStopped, UserError

SHORT = {"total_steps": 12, "checkpoint__every": 4, "evals__test__every": 6}
KEYS = {
  "step",
  "loss",
  "learning_rate",
  "grad_norm",
  "param_norm",
  "update_norm",
  "logit_scale",
  "logit_bias",
  "positive_logit",
  "negative_logit",
  "hardest_negative_logit",
  "examples_per_second",
  "data_wait",
  "epochs",
  "skipped_examples",
  "skipped_steps",
}


@pytest.fixture(autouse=True)
def _own_signals():
  """Gives back the handlers that the trainer replaces."""
  numbers = (signal.SIGINT, signal.SIGTERM)
  handlers = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, handlers, strict=True):
    signal.signal(number, handler)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(workdir, output) of a short run."""
  workdir = tmp_path_factory.mktemp("finished") / "new" / "run"
  status, output = programs.train(workdir, **SHORT, logging__pictures=True)
  assert status == 0, output
  return workdir, output


def test_a_run_leaves_everything_in_its_folder(finished):
  workdir, output = finished
  names = {path.name for path in workdir.iterdir()}
  files = {"config.json", "metrics.jsonl", "starts.jsonl"}
  assert names == {*files, "tensorboard", "checkpoints"}
  (events,) = (workdir / "tensorboard").iterdir()
  assert b"evals/test/chart" in events.read_bytes()
  saved = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert saved == [8, 12], "keep=2"
  assert f"done: 12 steps; results lie in {workdir}" in output
  assert "error" not in output.lower() and "warning" not in output.lower()


def test_every_metric_is_there_and_the_loss_falls(finished):
  lines = metrics.read_metrics(finished[0])
  logged = [line for line in lines if "loss" in line]
  assert [line["step"] for line in logged] == [3, 6, 9, 12]
  for line in logged:
    assert line.keys() == KEYS
    assert all(np.isfinite(value) for value in line.values())
    assert line["epochs"] == line["step"] * 16 / 1_437  # Of scanned digits.
  assert logged[-1]["loss"] < logged[0]["loss"]
  assert abs(logged[0]["logit_scale"] - 10) < 1, "the multiplier, not its log"
  evaluated = [line for line in lines if "evals/test/accuracy" in line]
  assert [line["step"] for line in evaluated] == [6, 12]
  assert all(0 <= e["evals/test/accuracy"] <= 1 for e in evaluated)


def _damage_by_removal(folder):
  shutil.rmtree(folder / "params" / "ocdbt.process_0")


def _damage_by_truncation(folder):
  (file,) = (folder / "optimizer" / "d").iterdir()
  os.truncate(file, file.stat().st_size // 2)


def _damage_position(folder):
  (folder / "data" / "metadata").write_text("{")


def test_a_damaged_checkpoint_is_set_aside_and_nothing_is_lost(
  finished, tmp_path
):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  _damage_by_removal(workdir / "checkpoints" / "12")
  shutil.copytree(workdir / "checkpoints" / "12", workdir / "damaged-12")

  status, output = programs.train(workdir, **SHORT)

  assert status == 0, output
  assert output.count("is damaged") == 1
  assert "checkpoints/12 is damaged" in output
  assert "resuming from step 8" in output
  assert (workdir / "damaged-12-again").is_dir()
  starts = (workdir / "starts.jsonl").read_text().splitlines()
  steps = [(s["first_step"], s["last_step"]) for s in map(json.loads, starts)]
  assert steps == [(0, 12), (8, 12)]
  state, data = runs.final_state(workdir, **SHORT)
  expected, expected_data = runs.final_state(finished[0], **SHORT)
  runs.assert_same(state, expected)
  assert data == expected_data
  steps = [line["step"] for line in metrics.read_metrics(workdir)]
  assert steps == [3, 6, 6, 9, 12, 12]


def test_checkpoints_that_are_all_damaged_are_one_line(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  _damage_by_truncation(workdir / "checkpoints" / "12")
  _damage_position(workdir / "checkpoints" / "8")
  with pytest.raises(
    UserError, match=r"can be read \(tried steps 12, 8\)"
  ) as e:
    loop.train(runs.config(**SHORT), str(workdir))
  assert len(str(e.value).splitlines()) == 1
  assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"8", "12"}


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_step(tmp_path):
  # Steps this large take the logits beyond float32.
  status, output = programs.train(
    tmp_path,
    **{**SHORT, "total_steps": 60, "checkpoint__every": 1},
    optimizer__learning_rate=1e30,
    optimizer__schedule="linear",
    optimizer__warmup_steps=50,
  )
  assert status == 1, output
  assert "Traceback" not in output
  (line,) = [x for x in output.splitlines() if x.startswith("error: ")]
  stopped = int(line.split()[2].rstrip(":"))
  assert f"checkpoints/{stopped - 1} " in line or stopped == 1, line
  assert f"{tmp_path}/checkpoints/" in line
  saved = [int(p.name) for p in tmp_path.glob("checkpoints/[0-9]*")]
  assert max(saved) == stopped - 1


def _spoil(monkeypatch, bad_steps):
  """Makes the gradient of some steps not finite, as an overflow would."""
  program = build.program

  def spoiled(config, mesh):
    built = program(config, mesh)

    def step(state, batch):
      if int(state.step) + 1 in bad_steps:
        # The bias is added to every logit.
        bias = state.params["logit_bias"]
        nan = jax.device_put(np.float32(np.nan), bias.sharding)
        state = state.replace(params={**state.params, "logit_bias": nan})
        kept = jax.tree.map(np.asarray, state.params)
        state, values = built.step(state, batch)
        for old, new in zip(
          jax.tree.leaves(kept), jax.tree.leaves(state.params), strict=True
        ):
          np.testing.assert_array_equal(np.asarray(new), old)
        bias = jax.device_put(np.float32(-5), nan.sharding)
        params = {**state.params, "logit_bias": bias}
        return state.replace(params=params), values
      return built.step(state, batch)

    return dataclasses.replace(built, step=step)

  monkeypatch.setattr(build, "program", spoiled)


def test_skip_mode_leaves_such_steps_out_and_counts_them(tmp_path, monkeypatch):
  _spoil(monkeypatch, {2, 3})
  config = runs.config(**{**SHORT, "total_steps": 6}, nonfinite="skip")
  config.evals = {}
  loop.train(config, str(tmp_path))
  lines = metrics.read_metrics(tmp_path)
  assert [line["skipped_steps"] for line in lines] == [2, 2]
  assert lines[0]["loss"] is None
  assert np.isfinite(lines[1]["loss"])
  _, data = runs.final_state(tmp_path, **SHORT)
  assert data["skipped_steps"] == 2


def test_stop_mode_saves_nothing_that_is_not_finite(tmp_path, monkeypatch):
  config = runs.config(**{**SHORT, "total_steps": 6, "checkpoint__every": 2})
  config.evals = {}

  program = build.program

  def poisoned(config, mesh):
    built = program(config, mesh)

    def step(state, batch):
      state, values = built.step(state, batch)
      finite = int(state.step) != 4
      return state, {**values, "finite": finite, "loss": np.float32(np.nan)}

    return dataclasses.replace(built, step=step)

  monkeypatch.setattr(build, "program", poisoned)
  with pytest.raises(RunStopped, match="^step 4: the loss is nan") as error:
    loop.train(config, str(tmp_path))
  assert f"last good checkpoint: {tmp_path}/checkpoints/2 " in str(error.value)
  assert len(str(error.value).splitlines()) == 1
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_rules_reach_the_optimizer(tmp_path):
  config = runs.config(**{**SHORT, "total_steps": 2})
  config.evals = {}
  config.optimizer.rules = (("image/.*", {"freeze": True}),)
  loop.train(config, str(tmp_path))
  program = build.program(config, build.mesh(config))
  before = runs.flatten(program.init().params)
  checkpoints = loop.Checkpoints(tmp_path / "checkpoints", keep=2)
  state, _ = checkpoints.restore(program.abstract_state)
  checkpoints.close()
  for path, array in runs.flatten(state.params).items():
    moved = not np.array_equal(array, before[path])
    assert moved != path.startswith("image/"), path
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["optimizer"]["rules"] == [["image/.*", {"freeze": True}]]


def test_rates_are_read_over_whole_windows(tmp_path, monkeypatch):
  windows = []

  class Meter(loop.Meter):
    def read(self):
      windows.append(self._steps)
      return super().read()

  monkeypatch.setattr(loop, "Meter", Meter)
  loop.train(runs.config(**SHORT, checkpoint__keep=3), str(tmp_path))
  # The first step, which compiles, counts in none.
  assert windows == [2, 3, 3, 3]
