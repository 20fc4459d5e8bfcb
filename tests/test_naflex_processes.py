"""Several processes train one run through batches of several lengths."""

import signal

import numpy as np
import pytest
import runs

from big_siglip import metrics
from big_siglip.data import lengths

LENGTHS = (4, 16)
CHANGES = {
  "model__image__patch_size": 4,
  "model__image__pooling": "map",
  "model__image__max_patches": 16,
  "data__patch_lengths": LENGTHS,
  "total_steps": 36,
  "evals__test__every": 36,
  "checkpoint__every": 6,
}


def _losses(workdir):
  lines = metrics.read_metrics(workdir)
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
def test_two_then_one_then_four_processes_draw_the_same_lengths(tmp_path):
  """Each stretch begins and ends between batches of both lengths."""
  status, output = runs.run(tmp_path / "alone", **CHANGES)
  assert status == 0, output
  folder, saved = tmp_path / "shared", 0
  for count, until in ((2, 6), (1, 15), (4, None)):
    several = runs.start_several(
      folder, count=count, devices=4 // count, **CHANGES
    )
    head = ""
    if until:
      for line in several[0].stdout:
        head += line
        if line.startswith(f"step {until}/"):
          break
      several[0].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=500)[0] for process in several]
    assert [process.returncode for process in several] == [0] * count, outputs
    assert not saved or f"resuming from step {saved}" in head + outputs[0]
    first, saved = (
      saved,
      max(int(p.name) for p in folder.glob("checkpoints/[0-9]*")),
    )
    seed = runs.config().seed
    drawn = {lengths.drawn(LENGTHS, seed, i) for i in range(first, saved)}
    assert drawn == set(LENGTHS)
    assert until is None or until <= saved < 36
  shared, one = _losses(folder), _losses(tmp_path / "alone")
  assert list(shared) == list(one)
  # Not the same bits: those of two processes differ from those of one before
  # the first resume, by up to 1.3e-7 of the loss.
  np.testing.assert_allclose(
    list(shared.values()), list(one.values()), rtol=1e-6
  )
