"""Views of what a decoder is to write of each example."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from big_siglip.data import boxes
from big_siglip.data.batch import Batch, Field, Fields
from big_siglip.data.box_reading import Reader
from big_siglip.data.targets import Writer
from big_siglip.data.views.boxes import seen_boxes
from big_siglip.data.views.pixels import Pixels
from big_siglip.data.views.tokens import draw_text, Tokens
from big_siglip.data.views.view import Sample, Streams
from big_siglip.errors import BadExample


@dataclasses.dataclass(frozen=True)
class Targets:
  """Writes the sequences of some tasks, each with the weights of its tokens.

  The caption is the one that `Tokens` draws, since it is drawn from the same
  random stream. Of the boxes one is drawn for each of the tasks that need one;
  an example without boxes has zeros for these. Boxes are those of the pixels
  that another view shows.

  Attributes:
    writer: of the sequences; None where the fields alone are wanted.
    tasks: T of `targets.TASKS`.
    length: L tokens.
    pixels: the view of the images; None: there are no boxes.
    reader: of boxes; None as well.
    name: of the random stream that boxes are drawn from.
  """

  writer: Writer | None
  tasks: tuple[str, ...]
  length: int
  pixels: Pixels | None = None
  reader: Reader | None = None
  name: str = "targets"

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
    if self.writer is None or not isinstance(rngs, Streams):
      raise TypeError("a writer is needed, and the streams of other views")
    captions = rngs.of(Tokens.name)
    bad: dict[int, BadExample] = {}
    for i, example in enumerate(examples):
      text = draw_text(example, captions, i)
      try:
        pairs = self._pairs(example, rngs, i)
      except BadExample as error:
        bad[i] = error
        continue
      for j, task in enumerate(self.tasks):
        row = out["targets"][i, j], out["target_weights"][i, j]
        pair = pairs.get(task)
        if task != "caption" and pair is None:
          row[0][:], row[1][:] = 0, 0
        else:
          box, words = pair or (None, text)
          row[0][:], row[1][:] = self.writer.write(task, words, box)
    return bad

  def _pairs(self, example: Sample, rngs: Streams, i: int) -> dict:
    """Returns {task: box and text} of those that an example has.

    Raises:
      BadExample: its boxes or its image are no good.
    """
    if self.pixels is None or self.reader is None:
      return {}
    cut = rngs.of(self.pixels.name)[i]
    found = seen_boxes(example, self.pixels, self.reader, cut)
    chosen = boxes.choose(rngs[i], found)
    return {} if chosen is None else dict(zip(_BOXED, chosen, strict=True))


_BOXED = ("aref", "gcap")


class CutTargets(Targets):
  """Does it where boxes depend on the image's size: an `ImageView`."""

  def scale(
    self, height: int, width: int, rng: np.random.Generator
  ) -> float | None:
    """See `ImageView`: it looks at no pixels."""
    del height, width, rng
    return 0.0
