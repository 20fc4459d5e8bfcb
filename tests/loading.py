"""A `load` for `train_batches` that takes examples one at a time."""

import dataclasses

import numpy as np

from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class OneByOne:
  """From (example, rng) -> arrays to what `rows.Load` is."""

  load: object

  def __call__(self, examples, seeds, out=None):
    """Makes arrays of its own: `out` may be written to, but need not be."""
    rows, bad = {}, {}
    for i, (example, seed) in enumerate(zip(examples, seeds, strict=True)):
      try:
        rows[i] = self.load(example, np.random.default_rng(seed))
      except BadExample as error:
        bad[i] = error
    if not rows:
      return {}, bad
    filler = next(iter(rows.values()))
    whole = [rows.get(i, filler) for i in range(len(examples))]
    return {
      name: np.stack([row[name] for row in whole]) for name in filler
    }, bad
