"""What a decoder is to write: captions, boxes of texts, texts of boxes.

The three tasks of LocCa (arXiv:2403.19596, section 3), of which SigLIP 2 takes
them. The papers leave open how a sequence is written exactly; here it is

    caption  PREFIX CAPTION
    aref     PREFIX TEXT : BOX     (automatic referring expression)
    gcap     PREFIX BOX : TEXT     (grounded captioning)

each with the tokenizer's end of a sentence. A prefix tells the task, and is
given: it is no target. A box is y1 x1 y2 x2, each a whole number from 0 to the
image's edge, `bins` - 1.

As "text" all of this goes through the run's tokenizer, piece by piece. As
"tokens" prefixes and coordinates are ids of their own behind the vocabulary,
which the decoder's table alone has: `bins` coordinates, then the tasks in their
order; no ":" is needed. That is shorter, and for vocabularies without digits.
"""

from collections.abc import Sequence
import dataclasses
import re

import numpy as np

from big_siglip.data.text import Tokenizer
from big_siglip.errors import UserError
from big_siglip.schema.terms import CAPTION_TASKS as TASKS

_BETWEEN = ":"
_BOX = re.compile(r"(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s*:?\s*$")
_WIDEST = (0.999, 0.999, 0.999, 0.999)  # A box with the longest text.


@dataclasses.dataclass(frozen=True)
class Writer:
  """Writes the sequences of all tasks, and reads boxes out of them.

  Attributes:
    tokenizer: (texts, length) -> int32 [len(texts), length].
    vocab_size: ids of texts, the first of the further ones.
    length: L, tokens of a sequence.
    boxes: "text" or "tokens".
    bins: how many values a coordinate may have.
    prefixes: of the tasks in their order, where `boxes` is "text".
  """

  tokenizer: Tokenizer
  vocab_size: int
  length: int
  boxes: str
  bins: int
  prefixes: tuple[str, ...]

  def check(self, tasks: Sequence[str], field: str) -> None:
    """Checks that all tasks can be written.

    Args:
      tasks: of `TASKS`.
      field: what to call the section of the config.

    Raises:
      UserError: the vocabulary or the length do not suffice.
    """
    if self.boxes == "text" and set(tasks) - {"caption"}:
      shown = self.box_text(_WIDEST)
      if self.tokenizer.decode(self.ids(shown)).strip() != shown:
        raise UserError(
          f"{field}.boxes='text': config.data.tokenizer cannot write numbers "
          f"such as {shown!r}; must be tokens"
        )
    starts = [tuple(self.prefix(task)) for task in tasks]
    if len(set(starts)) < len(starts):
      raise UserError(
        f"{field}.prefixes={self.prefixes!r}: must differ in their tokens, or "
        f"{field}.boxes be tokens"
      )
    box = len(self.box_ids(_WIDEST)) + len(self._between())
    for task, start in zip(tasks, starts, strict=True):
      least = len(start) + 2 + (task != "caption") * box
      if self.length < least:
        raise UserError(
          f"{field}.length={self.length}: must be at least {least} for its "
          f"{task}, with one token of text"
        )

  def ids(self, text: str) -> list[int]:
    """Returns the ids of a text, up to `length`, without an end."""
    row = self.tokenizer([text], self.length + 1)[0].tolist()
    return row[: row.index(self.tokenizer.eos_id)]

  def prefix(self, task: str) -> list[int]:
    """Returns the ids that tell a task."""
    number = TASKS.index(task)
    if self.boxes == "tokens":
      return [self.vocab_size + self.bins + number]
    return self.ids(self.prefixes[number])

  def box_text(self, box: Sequence[float]) -> str:
    """Returns (y1, x1, y2, x2), fractions of the image, as whole numbers."""
    return " ".join(map(str, self._numbers(box)))

  def box_ids(self, box: Sequence[float]) -> list[int]:
    """Returns a box's ids."""
    if self.boxes == "tokens":
      return [self.vocab_size + number for number in self._numbers(box)]
    return self.ids(self.box_text(box))

  def start(
    self,
    task: str,
    text: str | None = None,
    box: Sequence[float] | None = None,
  ) -> list[int]:
    """Returns the ids that are given where the rest is to be written.

    Args:
      task: of `TASKS`.
      text: of a caption: how it begins; of "aref": all of it.
      box: of "gcap".
    """
    start = self.prefix(task)
    if box is not None:
      start += [*self.box_ids(box), *self._between()]
    if text is not None:
      start += self.ids(text)
    if task == "aref" and text is not None:
      start += self._between()
    return start

  def write(
    self, task: str, text: str, box: Sequence[float] | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns a sequence, int32 [L], and its weights, float32 [L].

    A text that is too long is cut; the box and the end are always there. The
    prefix weighs nothing, nor does what stands behind the end.

    Args:
      task: of `TASKS`.
      text: the caption, or the text of the box.
      box: (y1, x1, y2, x2) in fractions of the image, for the other two tasks.
    """
    start, words = self.prefix(task), self.ids(text)
    marks = [] if box is None else self.box_ids(box)
    between = [] if box is None else self._between()
    room = self.length - 1 - len(start) - len(marks) - len(between)
    parts = (words[:room], between, marks)
    if task == "gcap":
      parts = (marks, between, words[:room])
    ids = [*start, *(i for part in parts for i in part), self.tokenizer.eos_id]
    row = np.zeros(self.length, np.int32)
    weights = np.zeros(self.length, np.float32)
    row[: len(ids)], weights[len(start) : len(ids)] = ids, 1
    return row, weights

  def read_text(self, ids: Sequence[int]) -> str:
    """Returns the text of ids up to their end, without boxes and prefixes."""
    ids = self._until_end(ids)
    words = [i for i in ids if i < self.vocab_size]
    return self.tokenizer.decode(words)

  def read_box(self, ids: Sequence[int]) -> tuple[float, ...] | None:
    """Returns the box that ids end with, or None where they end with none."""
    ids = self._until_end(ids)
    if self.boxes == "tokens":
      numbers = [i - self.vocab_size for i in ids][-4:]
    else:
      found = _BOX.search(self.tokenizer.decode(ids))
      numbers = [int(number) for number in found.groups()] if found else []
    if len(numbers) < 4 or not all(0 <= n < self.bins for n in numbers):
      return None
    y1, x1, y2, x2 = (number / (self.bins - 1) for number in numbers)
    return (y1, x1, y2, x2) if y1 < y2 and x1 < x2 else None

  def _between(self) -> list[int]:
    return [] if self.boxes == "tokens" else self.ids(_BETWEEN)

  def _numbers(self, box: Sequence[float]) -> list[int]:
    last = self.bins - 1
    return [min(max(round(float(x) * last), 0), last) for x in box]

  def _until_end(self, ids: Sequence[int]) -> list[int]:
    ids, end = [int(i) for i in ids], self.tokenizer.eos_id
    return ids[: ids.index(end)] if end in ids else ids
