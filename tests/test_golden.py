"""No change of the house moves a bit of what it trains.

The numbers of golden.json are of before its terms, views and stages were
there; recorded anew, bit for bit, on a machine that tells which it is. There
every bit must be equal; elsewhere compilers round in other ways, and the losses
must be close.
"""

import json

import golden
import numpy as np
import pytest


@pytest.mark.parametrize(
  "name",
  [
    # The longest, of what tests/test_sharding.py and others have one by one.
    pytest.param(name, marks=pytest.mark.slow) if name == "scan" else name
    for name in golden.RUNS
  ],
)
def test_fifty_steps_end_as_they_always_did(name):
  recorded = json.loads(golden.FILE.read_text())
  expected, found = recorded[name], golden.record(name)
  np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-3)
  if recorded["machine"] == golden.machine():
    assert found == expected
