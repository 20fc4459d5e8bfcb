"""Signals, and readers who go away: nothing that was trained is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import runs

from big_siglip import build, loop, metrics
from big_siglip.run.meter import Meter
from big_siglip.run.preemption import Interrupted, StopSignal
from big_siglip.run.skipped import Skipped

SHORT = {"total_steps": 4, "evals__test__every": 2, "checkpoint__every": 4}


def _steps(folder):
  return sorted(int(p.name) for p in folder.glob("checkpoints/[0-9]*"))


def test_an_evaluation_is_left_at_once_and_done_at_the_next_start(
  tmp_path, monkeypatch, capfd
):
  """The signal comes in the middle of a real evaluation, by a slow metric."""
  evaluators, calls = build.evaluators, []

  def slowly(config, mesh):
    (evaluator,) = evaluators(config, mesh).values()

    def evaluate(params):
      result = evaluator(params)
      calls.append(len(calls))
      if len(calls) == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)
        raise AssertionError("nobody was interrupted")
      return result

    return {"test": evaluate}

  monkeypatch.setattr(build, "evaluators", slowly)
  loop.train(runs.config(**SHORT), str(tmp_path))
  output = capfd.readouterr().out
  assert output.count("SIGTERM: will save and stop") == 1
  assert "stopped after step 2; run again" in output
  assert _steps(tmp_path) == [2] and len(calls) == 1

  loop.train(runs.config(**SHORT), str(tmp_path))
  evaluated = [
    line["step"]
    for line in metrics.read_metrics(tmp_path)
    if "evals/test/accuracy" in line
  ]
  assert evaluated == [2, 4] and len(calls) == 3


def test_the_look_at_a_step_is_not_interrupted(tmp_path, monkeypatch, capfd):
  """Else what nobody saw to be finite would be saved."""
  done, count = Meter.step_done, Skipped.count
  looked = []

  def step_done(meter):
    if len(looked) == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    done(meter)

  def counted(skipped, *arguments):
    looked.append(arguments)
    count(skipped, *arguments)

  monkeypatch.setattr(Meter, "step_done", step_done)
  monkeypatch.setattr(Skipped, "count", counted)
  config = runs.config(**SHORT, log_every=4)  # The evaluation waits for step 2.
  loop.train(config, str(tmp_path))
  assert len(looked) == 2 and _steps(tmp_path) == [2]
  assert "stopped after step 2; run again" in capfd.readouterr().out


def test_slow_data_do_not_keep_a_run_from_saving(tmp_path, monkeypatch, capfd):
  train_batches = loop.train_batches

  class Slow:
    def __init__(self, *arguments, **options):
      self._batches, self._taken = train_batches(*arguments, **options), 0
      self.close = self._batches.close

    def __next__(self):
      if self._taken == 3:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)
        raise AssertionError("nobody was interrupted")
      self._taken += 1
      return next(self._batches)

  monkeypatch.setattr(loop, "train_batches", Slow)
  loop.train(runs.config(**SHORT), str(tmp_path))
  assert "stopped after step 3; run again" in capfd.readouterr().out
  assert _steps(tmp_path) == [3]


def _signalled(arguments, before=(), **options):
  """Returns a process that sends itself SIGTERM, and the time to hear of it."""
  code = (
    "import os, signal, time\n"
    "from big_siglip.run.preemption import StopSignal\n"
    f"stop = StopSignal({arguments})\n"
    "os.kill(os.getpid(), signal.SIGTERM)\n"
    "time.sleep(3)\n"
    "print('went on', flush=True)\n"
    "os._exit(5)\n"
  )
  command = [*before, sys.executable, "-c", code]
  return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)


def test_a_process_of_several_does_not_leave_the_others_alone():
  process = _signalled("several=True", stdout=subprocess.PIPE)
  said = "SIGTERM: will save and stop\nwent on\n"
  assert (process.returncode, process.stdout) == (5, said), process.stderr


@pytest.mark.parametrize("output", ["closed", "unread"])
def test_a_signal_ends_a_process_that_nobody_hears(output):
  reader, writer = os.pipe()
  os.close(reader)
  closing = ["sh", "-c", 'exec "$@" >&-', "sh"]
  before = closing if output == "closed" else ()
  process = _signalled("", before, stdout=writer)
  os.close(writer)
  assert (process.returncode, process.stderr) == (0, "")


def test_handlers_are_again_what_they_were():
  numbers = signal.SIGTERM, signal.SIGINT
  before = [signal.getsignal(number) for number in numbers]
  # Another test's event loop may have left one.
  wakeup = signal.set_wakeup_fd(-1)
  stop = StopSignal()
  assert not stop.requested(1)
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGTERM)
  assert stop.requested(2)
  with pytest.raises(Interrupted), stop.interruptible():
    raise AssertionError("it was stopped before")
  stop.close()
  assert [signal.getsignal(number) for number in numbers] == before
  assert signal.set_wakeup_fd(wakeup) == -1


def test_the_second_ctrl_c_does_not_wait(tmp_path):
  process = runs.start(tmp_path, devices=1, total_steps=100_000)
  while not process.stdout.readline().startswith("step "):
    assert process.poll() is None
  process.send_signal(signal.SIGSTOP)  # Both come before it can do anything.
  process.send_signal(signal.SIGINT)
  time.sleep(0.1)
  process.send_signal(signal.SIGCONT)
  process.send_signal(signal.SIGINT)
  output, _ = process.communicate(timeout=100)
  stopped = "stopped after step" in output, "stopped at once" in output
  # The first may have been enough already.
  assert (process.returncode, stopped) in [
    (130, (False, True)),
    (130, (True, True)),
    (0, (True, False)),
  ], output
  assert "Traceback" not in output and "Fatal" not in output


def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path):
  options = {**SHORT, "evals__test__every": 4, "log_every": 1}
  process = runs.start(tmp_path, devices=1, **options)
  process.stdout.readline()
  process.stdout.close()
  assert process.wait(timeout=200) == 0
  assert _steps(tmp_path) == [4]
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert max(json.loads(line)["step"] for line in lines) == 4
