"""A view for `train_batches` that takes examples one at a time."""

from collections.abc import Mapping
import dataclasses

from big_siglip.data.batch import Field
from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class OneByOne:
  """From (example, rng) -> numbers by name to a view of them.

  Examples have their encoded images, as the source gave them.
  """

  load: object
  dtypes: Mapping[str, str]
  name: str = "one by one"

  def fields(self, batch):
    return {name: Field((), dtype) for name, dtype in self.dtypes.items()}

  def __call__(self, examples, rngs, out):
    bad = {}
    for i, example in enumerate(examples):
      plain = dataclasses.replace(example, image=example.image.encoded)
      try:
        for name, value in self.load(plain, rngs[i]).items():
          out[name][i] = value
      except BadExample as error:
        bad[i] = error
    return bad
