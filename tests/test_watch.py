"""A real run is watched by a real process beside it."""

import json
import os
import shutil
import signal
import subprocess
import sys

from etils import epath
import jax
import numpy as np
import programs
import pytest
import runs

from big_siglip import sharding
from big_siglip.errors import UserError
from big_siglip.evaluation import watch
from big_siglip.evaluators import Result
from big_siglip.metrics import read_metrics
from big_siglip.trained import saved

STEPS = 30  # A checkpoint every 7; the newest two are kept.
CHANGES = {
  "total_steps": STEPS,
  "evals__test__every": 7,
  "checkpoint__every": 7,
}


def start_watcher(workdir):
  runs.scratch()
  return subprocess.Popen(
    [
      *(sys.executable, "tools/evaluate.py", f"--watch={workdir}"),
      "--poll_seconds=0.1",
    ],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
  """A run that was watched: by one that was stopped, then by another."""
  workdir = tmp_path_factory.mktemp("watch") / "run"
  first = start_watcher(workdir)  # Before there is anything to watch.
  trainer = runs.start(workdir, devices=1, **CHANGES)
  runs.wait_for(first, "step ")
  first.send_signal(signal.SIGTERM)
  stopped = first.communicate(timeout=300)[0]
  assert first.returncode == 0, stopped
  assert "SIGTERM: stopped" in stopped
  # What a watcher leaves that is killed in the middle of a line.
  with (workdir / watch.NAME).open("a") as file:
    file.write('{"step": 1')
  second = start_watcher(workdir)
  output = trainer.communicate(timeout=300)[0]
  assert trainer.returncode == 0, output
  said = second.communicate(timeout=300)[0]
  assert second.returncode == 0, said
  assert f"step {STEPS}\n" in said and "done: " in said
  return workdir


def test_each_checkpoint_is_evaluated_once(watched):
  lines = read_metrics(watched, watch.NAME)
  steps = [line["step"] for line in lines]
  assert len(steps) == len(set(steps)) >= 2
  assert steps == sorted(steps) and steps[-1] == STEPS
  assert all(step % 7 == 0 or step == STEPS for step in steps)
  text = (watched / watch.NAME).read_text()
  assert len(text.splitlines()) == len(steps)


def test_it_finds_what_training_itself_measured(watched):
  key = "evals/test/accuracy"
  trained = {m["step"]: m[key] for m in read_metrics(watched) if key in m}
  lines = read_metrics(watched, watch.NAME)
  assert {m["step"]: m[key] for m in lines} == {
    m["step"]: trained[m["step"]] for m in lines
  }


def test_details_and_events_lie_beside(watched):
  last = json.loads((watched / "evaluations" / f"{STEPS}.json").read_text())
  assert last["step"] == STEPS
  test = last["evaluations"]["test"]
  assert test["spec"]["kind"] == "classification"
  assert 0 <= test["metrics"]["accuracy"] <= 1
  assert np.sum(test["details"]["confusion"]) == 360
  events = list((watched / "tensorboard" / "evaluations").iterdir())
  assert any(b"evals/test/accuracy" in e.read_bytes() for e in events)


def test_a_second_look_does_nothing_twice(watched):
  before = (watched / watch.NAME).read_bytes()
  status, output, said = programs.call(
    "tools/evaluate.py", f"--watch={watched}"
  )
  assert status == 0, said
  assert "step" not in output + said
  assert (watched / watch.NAME).read_bytes() == before


@pytest.fixture
def copy(watched, tmp_path):
  """The folder of the run, not evaluated yet."""
  for name in ("config.json", "checkpoints"):
    source = watched / name
    take = shutil.copytree if source.is_dir() else shutil.copy
    take(source, tmp_path / name)
  return tmp_path


def size(params):
  """An evaluator."""
  total = sum(x.size for x in jax.tree.leaves(params))
  return Result({"size": float(total)}, {})


def watcher(folder, names=("test",)):
  run = epath.Path(folder)
  config = saved.load_config(run)
  config.evals = {name: {"kind": "classification"} for name in names}
  evaluators = dict.fromkeys(names, size)
  return watch.Watcher(run, config, evaluators, sharding.make_mesh())


def watch_all(folder, **options):
  found = []
  with watcher(folder, **options) as made:
    made.watch(0.01, lambda step, results: found.append((step, set(results))))
  return found


def test_only_whole_checkpoints_are_read(copy):
  steps = sorted(int(p.name) for p in (copy / "checkpoints").iterdir())
  assert len(steps) == 2
  # What orbax writes before it is whole, and one that lost its parameters.
  shutil.copytree(
    copy / "checkpoints" / str(STEPS),
    copy / "checkpoints" / f"{STEPS + 1}.orbax-checkpoint-tmp-1",
  )
  shutil.copytree(copy / "checkpoints" / str(STEPS), copy / "checkpoints" / "3")
  shutil.rmtree(copy / "checkpoints" / "3" / "params")
  assert watch_all(copy) == [(step, {"test"}) for step in steps]


def test_a_checkpoint_may_be_deleted_while_it_is_read(copy, monkeypatch):
  steps = sorted(int(p.name) for p in (copy / "checkpoints").iterdir())

  def load_params(checkpoint, *rest, load=saved.load_params):
    if int(checkpoint.name) == steps[0]:
      shutil.rmtree(checkpoint)
    return load(checkpoint, *rest)

  monkeypatch.setattr(saved, "load_params", load_params)
  assert watch_all(copy) == [(STEPS, {"test"})]


def test_further_evaluations_are_added_to_those_that_were_made(copy):
  watch_all(copy)
  found = watch_all(copy, names=("test", "more"))
  assert {frozenset(names) for _, names in found} == {frozenset({"more"})}
  lines = read_metrics(copy, watch.NAME)
  assert len(lines) == 4
  last = json.loads((copy / "evaluations" / f"{STEPS}.json").read_text())
  assert set(last["evaluations"]) == {"test", "more"}


def test_two_watchers_of_a_run_are_one_too_many(copy):
  with (
    watcher(copy),
    pytest.raises(UserError, match="another process watches this run"),
  ):
    watcher(copy)
