"""Several processes train what one process trains."""

import signal

import numpy as np
import pytest
import runs

from big_siglip import metrics, processes
from big_siglip.errors import UserError

# Steps enough for a signal to come before the end.
CHANGES = {"total_steps": 90, "evals__test__every": 12}


def _losses(workdir):
  lines = metrics.read_metrics(workdir)
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _accuracies(workdir):
  key = "evals/test/accuracy"
  lines = metrics.read_metrics(workdir)
  return {line["step"]: line[key] for line in lines if key in line}


def test_two_processes_stop_together_and_one_goes_on(tmp_path):
  alone, shared = tmp_path / "alone", tmp_path / "shared"
  status, output = runs.run(alone, **CHANGES)
  assert status == 0, output

  pair = runs.start_several(shared, count=2, devices=2, **CHANGES)
  for line in pair[0].stdout:
    if line.startswith("step 15/"):
      break
  # The process that does not write: the other one has to be told.
  pair[1].send_signal(signal.SIGTERM)
  outputs = [process.communicate(timeout=300)[0] for process in pair]
  assert [process.returncode for process in pair] == [0, 0], outputs
  assert "stopped after step" in outputs[0]
  assert "stopped after step" not in outputs[1], "one speaks for all"
  saved = max(int(p.name) for p in shared.glob("checkpoints/[0-9]*"))
  assert 15 <= saved < 90
  assert max(_losses(shared)) == saved // 3 * 3

  # On one process the next batch is the one that two would have taken.
  status, output = runs.run(shared, **CHANGES)
  assert status == 0, output
  assert f"resuming from step {saved}" in output

  both, one = _losses(shared), _losses(alone)
  assert list(both) == list(one) == list(range(3, 91, 3))
  np.testing.assert_allclose(list(both.values()), list(one.values()), rtol=1e-5)
  # The first evaluation was of two processes; one of 360 images may fall
  # on the other side.
  assert list(_accuracies(shared)) == list(_accuracies(alone))
  np.testing.assert_allclose(
    list(_accuracies(shared).values()),
    list(_accuracies(alone).values()),
    atol=1.5 / 360,
  )


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_a_number_of_processes_that_is_none_is_named(monkeypatch, name):
  monkeypatch.setenv(name, "two")
  with pytest.raises(UserError, match=f"{name}='two': must be a whole number"):
    processes.join()


def test_an_environment_that_names_nobody_is_an_error(tmp_path):
  status, output = runs.run(tmp_path, distributed=True)
  assert status == 2
  assert "config.distributed=True" in output
  assert "Set JAX_COORDINATOR_ADDRESS" in output
  assert "Traceback" not in output
