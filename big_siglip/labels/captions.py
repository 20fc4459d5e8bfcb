"""What a decoder writes of images, as a table, JSON or CSV.

One image after the other is written and forgotten, however many there are.
"""

from collections.abc import Iterable, Iterator, Sequence
import csv
import dataclasses
import io
import json

from big_siglip.embeddings import AnyInputs
from big_siglip.labels.classifying import Counts, prepared
from big_siglip.trained.inference import Model
from big_siglip.trained.writing import Box, Search

_LABEL = "label"


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is asked of each image; nothing: a caption.

  Attributes:
    prefix: how the caption begins; None: no matter.
    phrases: whose boxes are looked for.
    boxes: whose texts are asked for.
    labels: captions that are scored.
    search: how sequences are looked for.
  """

  prefix: str | None
  phrases: Sequence[str]
  boxes: Sequence[Box]
  labels: Sequence[str]
  search: Search


@dataclasses.dataclass(frozen=True)
class Answer:
  """One answer.

  Attributes:
    task: "caption", "aref" (the box of a text), "gcap" (the text of a box) or
      "label".
    text: that was given or written.
    box: (y1, x1, y2, x2) in shares of the image; None: there is none.
    score: the logarithm of the probability of what was written.
  """

  task: str
  text: str
  box: Box | None
  score: float


def answers(
  model: Model,
  inputs: Sequence[tuple[str, AnyInputs]],
  asked: Asked,
  counts: Counts,
) -> Iterator[tuple[str, list[Answer]]]:
  """Yields (image, its answers); what cannot be read is named and counted.

  Args:
    model: with a decoder.
    inputs: (what the user called them, the images).
    asked: of each image.
    counts: is brought up to date.

  Raises:
    UserError: the model was not trained for what is asked.
  """
  writer, search = model.captioner, asked.search
  starts = [("aref", text, None) for text in asked.phrases]
  starts += [("gcap", None, box) for box in asked.boxes]
  if not starts and not asked.labels:
    starts = [("caption", asked.prefix, None)]
  for task in {task for task, *_ in starts} | {
    "caption" for _ in asked.labels[:1]
  }:
    writer.check_task(task)
  begun = [(*one, writer.start(*one)) for one in starts]
  for names, images in prepared(model, inputs, counts):
    found: list[list[Answer]] = [[] for _ in names]
    batches = writer.batches(iter(images), len(images)) if names else ()
    for context, _ in batches:
      for task, text, box, start in begun:
        written = writer.write(context, start, search)[: len(names)]
        for own, one in zip(found, written, strict=True):
          known = text if task == "aref" else one.text
          where = one.box if task == "aref" else box
          own.append(Answer(task, known or "", where, one.score))
      if asked.labels:
        scores = writer.score(context, asked.labels)[: len(names)]
        for own, row in zip(found, scores, strict=True):
          pairs = zip(asked.labels, row.tolist(), strict=True)
          order = sorted(pairs, key=lambda pair: -pair[1])
          own += [Answer(_LABEL, label, None, score) for label, score in order]
    yield from zip(names, found, strict=True)


def lines(
  kind: str, found: Iterable[tuple[str, Sequence[Answer]]]
) -> Iterator[str]:
  """Yields what to print, some lines for each image.

  Args:
    kind: "table", "json" or "csv".
    found: (image, its answers).
  """
  if kind == "csv":
    yield _row(["image", "task", "text", "y1", "x1", "y2", "x2", "score"])
  for image, own in found:
    if kind == "json":
      made = [dataclasses.asdict(answer) for answer in own]
      yield json.dumps({"image": image, "answers": made})
      continue
    if kind == "table":
      yield image
    for answer in own:
      box = answer.box or ("",) * 4
      numbers = [_short(x) if x != "" else "" for x in box]
      if kind == "csv":
        score = f"{answer.score:.6g}"
        yield _row([image, answer.task, answer.text, *numbers, score])
        continue
      where = ",".join(numbers) + "  " if answer.box else ""  # As --box.
      if answer.task == "aref" and not answer.box:
        where = "no box  "
      yield f"  {answer.score:8.2f}  {where}{answer.text}"


def _short(share: float) -> str:
  return f"{share:.3f}"


def _row(values: Iterable[str]) -> str:
  line = io.StringIO()
  csv.writer(line, lineterminator="").writerow(values)
  return line.getvalue()
