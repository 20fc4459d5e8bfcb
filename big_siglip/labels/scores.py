"""What a model says of images and labels, as a table, JSON or CSV.

One image after the other is written and forgotten, however many there are.

Shape letters: C labels.
"""

from collections.abc import Iterable, Iterator, Sequence
import csv
import dataclasses
import io
import json
from typing import Any

import numpy as np

from big_siglip.errors import UserError
from big_siglip.trained.classifier import softmax
from big_siglip.trained.vectors import sigmoid

FORMATS = ("table", "json", "csv")
BETWEEN = "; "  # The tags of an image in a CSV.
_PRINTED = 50  # Lines of an image in a table for people.


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is to be told of an image.

  Attributes:
    labels: C.
    has_sigmoid: whether each label has a probability of its own; otherwise all
      of them share one.
    top: the most labels to tell; None: as many as the threshold lets.
    threshold: the least probability; None: no matter.
  """

  labels: Sequence[str]
  has_sigmoid: bool
  top: int | None
  threshold: float | None

  def probabilities(self, logits: np.ndarray) -> np.ndarray:
    """Returns C, those that a threshold is for."""
    return sigmoid(logits) if self.has_sigmoid else softmax(logits)

  def chosen(self, logits: np.ndarray) -> list[int]:
    """Returns the numbers of the labels to tell, the likeliest first."""
    order = np.argsort(-logits, kind="stable")
    if self.threshold is not None:
      order = order[self.probabilities(logits)[order] >= self.threshold]
    return order[: self.top].tolist()


def lines(
  kind: str, asked: Asked, scored: Iterable[tuple[str, np.ndarray]]
) -> Iterator[str]:
  """Yields what to print, some lines for each image.

  Args:
    kind: one of `FORMATS`.
    asked: what is to be told.
    scored: (image, its logits C).

  Raises:
    UserError: a CSV would hold tags that cannot be told apart.
  """
  write = {"table": _table, "json": _json, "csv": _csv}[kind]
  return write(asked, scored)


def check(kind: str, labels: Sequence[str], threshold: float | None) -> None:
  """Raises a `UserError` if labels would make a CSV's tags unclear."""
  broken = [label for label in labels if BETWEEN.strip() in label]
  if kind == "csv" and threshold is not None and broken:
    raise UserError(
      f"--labels: {broken[0]!r} holds {BETWEEN.strip()!r}, which stands "
      "between the tags of a CSV; --format=json keeps them apart"
    )


def _table(asked: Asked, scored) -> Iterator[str]:
  for image, logits in scored:
    own, shares = asked.probabilities(logits), softmax(logits)
    found = asked.chosen(logits)
    yield f"{image}\n  {'sigmoid':>8} {'softmax':>8}"
    if not found:
      best = int(np.argmax(logits))
      yield (
        f"  none of {len(asked.labels):,} labels at {asked.threshold:.2%} or "
        f"above; the likeliest is {asked.labels[best]} at {own[best]:.2%}"
      )
    shown = found if asked.top else found[:_PRINTED]
    for i in shown:
      first = f"{own[i]:8.2%}" if asked.has_sigmoid else f"{'-':>8}"
      yield f"  {first} {shares[i]:8.2%}  {asked.labels[i]}"
    if len(shown) < len(found):
      yield f"  and {len(found) - len(shown):,} more (--format=json has all)"


def _json(asked: Asked, scored) -> Iterator[str]:
  for image, logits in scored:
    own, shares = asked.probabilities(logits), softmax(logits)
    scores: dict[str, Any] = {
      asked.labels[i]: {
        "probability": float(own[i]) if asked.has_sigmoid else None,
        "softmax": float(shares[i]),
      }
      for i in asked.chosen(logits)
    }
    yield json.dumps({"image": image, "scores": scores})


def _csv(asked: Asked, scored) -> Iterator[str]:
  """Yields tags where there is a threshold, or else a column for each label."""
  tags = asked.threshold is not None
  head = ["tags", "probabilities"] if tags else asked.labels
  yield _row(["image", *head])
  for image, logits in scored:
    own = asked.probabilities(logits)
    if not tags:
      yield _row([image, *map(_short, own)])
      continue
    found = asked.chosen(logits)
    names = BETWEEN.join(asked.labels[i] for i in found)
    yield _row([image, names, BETWEEN.join(_short(own[i]) for i in found)])


def _short(probability: float) -> str:
  return f"{probability:.6g}"


def _row(values: Iterable[str]) -> str:
  line = io.StringIO()
  csv.writer(line, lineterminator="").writerow(values)
  return line.getvalue()
