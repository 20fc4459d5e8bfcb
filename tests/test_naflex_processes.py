"""Several processes train one run through batches of several lengths."""

import pytest
import runs

from big_siglip import metrics
from big_siglip.data import lengths

LENGTHS, STEPS = (4, 16), 36
CHANGES = {
  "model__image__patch_size": 4,
  "model__image__pooling": "map",
  "model__image__max_patches": 16,
  "data__patch_lengths": LENGTHS,
  "total_steps": STEPS,
  "evals__test__every": STEPS,
  "checkpoint__every": 6,
}


def _train(folder, count, until=None):
  """Trains on four devices of `count` processes; returns what was saved last.

  Args:
    folder: of the run.
    count: how many processes. One, too, is a run of several (distributed), so
      that the devices add up in the same order: gloo's, whoever owns them.
    until: after which step they are told to stop; None: they end.

  Returns:
    The step of the newest checkpoint, and what the first process said.
  """
  several = runs.start_several(
    folder, count=count, devices=4 // count, **CHANGES
  )
  said, *_ = runs.finish_several(several, after=until)
  return runs.newest(folder), said


def _losses(folder):
  lines = metrics.read_metrics(folder)
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
def test_two_then_one_then_four_processes_end_like_one_bit_for_bit(tmp_path):
  """Each stretch begins and ends between batches of both lengths."""
  alone, shared, saved = tmp_path / "alone", tmp_path / "shared", 0
  assert _train(alone, 1)[0] == STEPS
  for count, until in ((2, 6), (1, 15), (4, None)):
    first = saved
    saved, said = _train(shared, count, until)
    assert not first or f"resuming from step {first}" in said
    seed = runs.config().seed
    drawn = [lengths.drawn(LENGTHS, seed, i) for i in range(first, saved)]
    assert set(drawn) == set(LENGTHS)
    assert saved == STEPS if until is None else until <= saved < STEPS
  assert _losses(shared) == _losses(alone)
  (state, data), (expected, expected_data) = (
    runs.final_state(folder, **CHANGES) for folder in (shared, alone)
  )
  runs.assert_same(state, expected)
  assert data == expected_data
