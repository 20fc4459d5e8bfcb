"""How many patches the images of a training batch have; numpy alone.

All images of a batch have as many, so that their number tells no pair apart
(arXiv:2502.14786, section 2.4.2). It is drawn by the seed and the number of the
batch: every process draws the same, and a run that is resumed goes on with it.
"""

from collections.abc import Sequence
import zlib

import numpy as np

_STREAM = zlib.crc32(b"patches of a batch")


def drawn(lengths: Sequence[int], seed: int, batch: int) -> int:
  """Returns the length of a global batch, each as likely as another.

  Args:
    lengths: to draw from, at least one.
    seed: of the run.
    batch: its number.
  """
  if len(lengths) == 1:
    return lengths[0]
  generator = np.random.default_rng((seed, batch, _STREAM))
  return lengths[int(generator.integers(len(lengths)))]
