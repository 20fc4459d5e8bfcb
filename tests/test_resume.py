"""A run that is stopped and killed ends as one that is not, bit for bit."""

import json
import pathlib
import random
import signal
import threading
import time

import programs
import pytest
import runs

from big_siglip import metrics

STEPS = 36
CHANGES = {
  "total_steps": STEPS,
  "checkpoint__every": 12,
  "evals__test__every": 24,
}
DEVICES = 8  # As many as this process has, which trains parts of the run.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The workdir of a run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("whole")
  status, output = programs.train(workdir, **CHANGES)
  assert status == 0, output
  return workdir


def _start(workdir):
  return runs.start(workdir, devices=DEVICES, **CHANGES)


def _interrupt(workdir, signum, ready):
  """Starts a run; sends the signal once `ready(line)`; returns its status."""
  process = _start(workdir)
  lines = []
  sent = False
  for line in process.stdout:
    lines.append(line)
    if not sent and ready(line):
      process.send_signal(signum)
      sent = True
  process.wait(timeout=300)
  assert sent, "".join(lines)
  return process.returncode, "".join(lines)


def _after_step(step):
  """Returns whether a line of the output is of `step` or a later one."""

  def ready(line):
    words = line.replace("/", " ").split()
    return words[0] == "step" and int(words[1]) >= step

  return ready


def _kill_while_saving(workdir):
  """Kills a run as soon as part of a checkpoint lies on disk."""
  process = _start(workdir)
  runs.wait_for(process, "step ")  # To look for files costs a processor.
  drain = threading.Thread(target=process.stdout.read)
  drain.start()
  pattern = "checkpoints/*orbax-checkpoint-tmp*/*"
  while process.poll() is None and not list(workdir.glob(pattern)):
    time.sleep(0.0005)
  process.kill()
  process.wait()
  drain.join()
  return list(workdir.glob("checkpoints/*orbax-checkpoint-tmp*"))


def _logged(workdir):
  """Returns what was logged, but for the rates, which are of the clock."""
  clock = ("examples_per_second", "data_wait", "mfu")
  return [
    {k: v for k, v in line.items() if k not in clock}
    for line in metrics.read_metrics(workdir)
  ]


def test_killed_and_stopped_runs_end_like_a_whole_one(whole, tmp_path):
  random_step = random.Random(0).randint
  workdir = tmp_path / "run"

  stopped = _interrupt(workdir, signal.SIGTERM, _after_step(random_step(1, 9)))
  assert stopped[0] == 0, stopped[1]
  assert "stopped after step" in stopped[1]
  saved = runs.newest(workdir)
  assert f"stopped after step {saved};" in stopped[1]

  unfinished = _kill_while_saving(workdir)
  assert unfinished, "the run ended before it could be killed"

  killed = _interrupt(workdir, signal.SIGKILL, _after_step(random_step(13, 27)))
  assert killed[0] == -signal.SIGKILL
  # As if killed in the middle of a line.
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 48, "loss": 3.')

  status, output = programs.train(workdir, **CHANGES)
  assert status == 0, output
  assert "resuming from step" in output
  assert f"done: {STEPS} steps" in output

  state, data = runs.final_state(workdir, **CHANGES)
  expected_state, expected_data = runs.final_state(whole, **CHANGES)
  assert int(state["step"]) == STEPS
  runs.assert_same(state, expected_state)
  assert data == expected_data
  assert _logged(workdir) == _logged(whole)
  losses = [line["step"] for line in _logged(workdir) if "loss" in line]
  assert losses == list(range(3, STEPS + 1, 3))


def test_a_finished_run_does_nothing_when_started_again(whole):
  before = (whole / "metrics.jsonl").read_bytes()
  checkpoints = sorted(whole.glob("checkpoints/*"))

  status, output = programs.train(whole, **CHANGES)

  assert status == 0, output
  assert f"done: {STEPS} steps" in output
  assert (whole / "metrics.jsonl").read_bytes() == before
  assert sorted(whole.glob("checkpoints/*")) == checkpoints


def test_a_stop_during_start_up_leaves_a_folder_that_can_go_on(tmp_path):
  workdir = tmp_path / "run"
  process = runs.start(workdir, total_steps=3, evals__test__every=3)
  deadline = time.monotonic() + 200
  while not (workdir / "config.json").exists():
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.005)
  process.terminate()
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  # While it compiles it does not wait for a step: nothing is lost.
  assert "SIGTERM: nothing was trained since the start" in output
  assert not list(workdir.glob("checkpoints/[0-9]*"))

  status, output = programs.train(workdir, total_steps=3, evals__test__every=3)

  assert status == 0, output
  assert "done: 3 steps" in output
  config = json.loads(pathlib.Path(workdir, "config.json").read_text())
  assert config["total_steps"] == 3
