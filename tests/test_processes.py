"""Several processes train what one process trains, here on a mixture."""

import numpy as np
import programs
import pytest
import runs

from big_siglip import metrics
from big_siglip.errors import UserError
from big_siglip.run import processes

# Steps enough for a signal to come before the end.
STEPS = 48
CHANGES = {
  "total_steps": STEPS,
  "evals__test__every": 24,
  "checkpoint__every": 12,
}


def _losses(workdir):
  lines = metrics.read_metrics(workdir)
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _accuracies(workdir):
  key = "evals/test/accuracy"
  lines = metrics.read_metrics(workdir)
  return {line["step"]: line[key] for line in lines if key in line}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """The path of a config whose data are two sources."""
  return runs.mixed_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, config):
  """A whole run of one process, whose devices add up as those of several."""
  folder = tmp_path_factory.mktemp("processes") / "alone"
  runs.finish_several(
    runs.start_several(folder, count=1, devices=4, config=config, **CHANGES)
  )
  return folder


def test_two_processes_stop_together_and_one_goes_on(alone, config, tmp_path):
  shared = tmp_path / "shared"
  options = dict(config=config, **CHANGES)
  pair = runs.start_several(shared, count=2, devices=2, **options)
  # The process that does not write: the other one has to be told.
  outputs = runs.finish_several(pair, after=15, told=1)
  assert "stopped after step" in outputs[0]
  assert "stopped after step" not in outputs[1], "one speaks for all"
  saved = runs.newest(shared)
  assert 15 <= saved < STEPS
  assert max(_losses(shared)) == saved // 3 * 3

  # On one process the next batch is the one that two would have taken; one
  # that is not distributed adds in another order.
  status, output = programs.train(shared, **options)
  assert status == 0, output
  assert f"resuming from step {saved}" in output

  both, one = _losses(shared), _losses(alone)
  assert list(both) == list(one) == list(range(3, STEPS + 1, 3))
  assert [x for step, x in both.items() if step <= saved] == [
    x for step, x in one.items() if step <= saved
  ]
  np.testing.assert_allclose(list(both.values()), list(one.values()), rtol=1e-5)
  # The first evaluation was of two processes; one of 360 images may fall
  # on the other side.
  assert list(_accuracies(shared)) == list(_accuracies(alone))
  np.testing.assert_allclose(
    list(_accuracies(shared).values()),
    list(_accuracies(alone).values()),
    atol=1.5 / 360,
  )


def test_epochs_of_each_source_are_in_the_metrics(alone):
  last = [m for m in metrics.read_metrics(alone) if "loss" in m][-1]
  drawn = last["step"] * runs.TINY["batch_size"]
  assert last["epochs/one"] == pytest.approx(drawn / 4 / 1_437)
  assert last["epochs/two"] == pytest.approx(drawn * 3 / 4 / 360)


@pytest.mark.slow
def test_two_then_one_then_four_processes_train_one_run(
  alone, config, tmp_path
):
  """Each stretch goes on with the very next example of the mixture."""
  saved = 0
  for count, until in ((2, 9), (1, 24), (4, None)):
    several = runs.start_several(
      tmp_path, count=count, devices=4 // count, config=config, **CHANGES
    )
    said, *_ = runs.finish_several(several, after=until)
    assert not saved or f"resuming from step {saved}" in said
    saved = runs.newest(tmp_path)
    assert until is None or until <= saved < STEPS
  assert list(_losses(alone)) == list(range(3, STEPS + 1, 3))
  assert _losses(tmp_path) == _losses(alone), "bit for bit"


@pytest.mark.parametrize(
  ("count", "lost"),
  [
    pytest.param(2, 1, marks=pytest.mark.slow),
    pytest.param(4, 3, marks=pytest.mark.slow),
    pytest.param(4, 0, marks=pytest.mark.slow),
  ],
)
def test_where_one_process_is_lost_all_end_and_half_of_them_go_on(
  count, lost, alone, config, tmp_path
):
  options = dict(config=config, **CHANGES)
  several = runs.start_several(
    tmp_path, count=count, devices=4 // count, mesh__slices=count, **options
  )
  head = runs.wait_for(several[0], "step 18/")
  assert "step 18/" in head
  several[lost].kill()
  # They must not wait for it for longer than its silence may last.
  outputs = [
    process.communicate(timeout=2 * processes.HEARTBEAT_SECONDS)[0]
    for process in several
  ]
  for index in set(range(count)) - {lost}:
    assert several[index].returncode not in (0, None)
    # JAX itself ends a process whose coordinator, process 0, is lost.
    said = ("another process was lost", "another task died")
    assert any(text in outputs[index] for text in said), outputs[index]
    if lost and "another process was lost" in outputs[index]:
      assert several[index].returncode == processes.LOST_STATUS

  # Nothing saved is lost, and each batch is the same on fewer processes.
  half = count // 2
  fewer = runs.start_several(
    tmp_path, count=half, devices=4 // half, mesh__slices=half, **options
  )
  outputs = runs.finish_several(fewer)
  assert "resuming from step " in outputs[0]
  shared, one = _losses(tmp_path), _losses(alone)
  assert list(shared) == list(one)
  np.testing.assert_allclose(
    list(shared.values()), list(one.values()), rtol=1e-5
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
