"""A view of what a decoder is to write of each example."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from big_siglip.data.batch import Batch, Field, Fields
from big_siglip.data.targets import Writer
from big_siglip.data.views.tokens import draw_text
from big_siglip.data.views.view import Sample, Streams
from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class Targets:
  """Writes the sequences of some tasks, each with the weights of its tokens.

  The caption is the one that `Tokens` draws: both read one random stream. An
  example without a box has zeros for the tasks that need one.

  Attributes:
    writer: of the sequences; None where the fields alone are wanted.
    tasks: T of `targets.TASKS`.
    length: L tokens.
  """

  writer: Writer | None
  tasks: tuple[str, ...]
  length: int

  @property
  def name(self) -> str:
    """That of `Tokens`, so that both draw the same caption."""
    return "text"

  def fields(self, batch: int) -> Fields:
    """See `View`: "targets" int32 and "target_weights" float32, [n, T, L]."""
    del batch
    shape = len(self.tasks), self.length
    return {
      "targets": Field(shape, "int32"),
      "target_weights": Field(shape, "float32"),
    }

  def __call__(
    self,
    examples: Sequence[Sample],
    rngs: Sequence[np.random.Generator] | Streams,
    out: Batch,
  ) -> dict[int, BadExample]:
    """See `View`."""
    writer = self.writer
    if writer is None:
      raise TypeError("these tell their fields alone: they have no writer")
    for i, example in enumerate(examples):
      text = draw_text(example, rngs, i)
      for j, task in enumerate(self.tasks):
        row = writer.write(task, text)
        out["targets"][i, j], out["target_weights"][i, j] = row
    return {}
