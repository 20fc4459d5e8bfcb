"""From what data sets store to `boxes.Boxes`.

They store boxes in several forms; `config.data.boxes.format` says in which, and
none is guessed.

Shape letters: n boxes of an image.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any

import numpy as np

from big_siglip.data import boxes as checked
from big_siglip.data.boxes import BadBoxes, Boxes
from big_siglip.data.sources.nested import dig
from big_siglip.errors import UserError
from big_siglip.schema.words import BOX_FORMATS


@dataclasses.dataclass(frozen=True)
class Reader:
  """Which fields of an example hold boxes, and in which form.

  Attributes:
    key: of the field with boxes.
    text_key: of that with their texts.
    format: one of `BOX_FORMATS`; see `as_fractions`.
  """

  key: str = "boxes"
  text_key: str = "box_texts"
  format: str = "yxyx"

  @classmethod
  def of(cls, data: Mapping[str, Any], needed_by: str) -> "Reader":
    """Returns that of the section `config.data`.

    Args:
      data: the section.
      needed_by: what asks for boxes, such as "config.terms.words.aref=1.0".

    Raises:
      UserError: `config.data.fields` lacks what is to be read.
    """
    made = cls(**dict(data["boxes"]))
    lacks = [k for k in (made.key, made.text_key) if k not in data["fields"]]
    if lacks:
      raise UserError(
        f"config.data.fields={tuple(data['fields'])!r}: must hold"
        f" {' and '.join(map(repr, lacks))}, for {needed_by}"
      )
    return made

  def __call__(
    self, fields: Mapping[str, Any], height: int, width: int
  ) -> Boxes:
    """Returns the boxes of an example; none where it has none.

    Args:
      fields: of the example.
      height: of the whole image in pixels; matters for pixel forms alone.
      width: the same.

    Raises:
      BadBoxes: see `decode`.
    """
    value, texts = (
      fields[k] if k in fields else dig(fields, k)
      for k in (self.key, self.text_key)
    )
    return decode(value, texts, self.format, height, width)


def decode(
  value: Any,
  texts: Any,
  form: str,
  height: int = 1,
  width: int = 1,
  scores: Any = None,
) -> Boxes:
  """Returns boxes as data sets store them, all of them good.

  Args:
    value: [n, 4] of numbers, a flat [n * 4], or JSON of it; None or empty: no
      boxes.
    texts: n of them, JSON of a list, or one text for one box.
    form: one of `BOX_FORMATS`.
    height: of the whole image in pixels, for forms in pixels.
    width: the same.
    scores: [n] of numbers; None: there are none.

  Raises:
    BadBoxes: a box is not as it should be; the message says which, from 1, and
      why. What reaches less than `SLACK` beyond the image is clipped.
  """
  boxes, said = _as_array(value), _as_texts(texts)
  if len(said) != len(boxes):
    raise BadBoxes(
      "other shape", f"has {len(boxes)} boxes, and {len(said)} texts for them"
    )
  given = None if scores is None else _as_scores(scores, len(boxes))
  fractions = as_fractions(boxes, form, height, width)
  found = checked.problems(fractions, said, given)
  for i, problem in enumerate(found):
    if problem:
      raise BadBoxes(
        problem,
        f"box {i + 1} of {len(said)}, {_shown(boxes[i])}: {problem}"
        + _hint(problem, form, boxes[i]),
      )
  clipped = fractions.clip(0, 1).astype(np.float32)
  return Boxes(
    clipped, said, None if given is None else given.astype(np.float32)
  )


def as_fractions(
  boxes: np.ndarray, form: str, height: int, width: int
) -> np.ndarray:
  """Returns (top, left, bottom, right) in fractions, float64 [n, 4].

  Args:
    boxes: [n, 4].
    form: "yxyx": (top, left, bottom, right) in fractions already, as TFDS and
      big_vision have them; "xyxy": (left, top, right, bottom) in pixels, as
      PASCAL VOC and detectors of transformers; "xywh": (left, top, width,
      height) in pixels, as COCO.
    height: of the image in pixels.
    width: the same.
  """
  if form not in BOX_FORMATS:
    raise ValueError(f"form {form!r}: must be one of {', '.join(BOX_FORMATS)}")
  boxes = np.asarray(boxes, np.float64)
  if form == "yxyx":
    return boxes
  left, top, right, bottom = boxes.T
  if form == "xywh":
    right, bottom = left + right, top + bottom
  return np.stack(
    [top / height, left / width, bottom / height, right / width], axis=1
  )


def _as_array(value: Any) -> np.ndarray:
  """Returns float64 [n, 4]; what is no number becomes NaN."""
  value = _json(value)
  if value is None or (hasattr(value, "__len__") and not len(value)):
    return np.zeros((0, 4))
  try:
    array = np.array(value, dtype=object)
    array = np.array([_number(x) for x in array.ravel()]).reshape(array.shape)
  except (TypeError, ValueError) as error:
    raise BadBoxes("other shape", "its boxes are no array [n, 4]") from error
  flat = array.ndim == 1 and len(array) % 4 == 0
  if flat and not any(isinstance(x, list | tuple) for x in value):
    array = array.reshape(-1, 4)  # As tf.train.Example has them.
  if array.shape[1:] != (4,):
    shape = list(array.shape)
    raise BadBoxes(
      "other shape", f"its boxes have shape {shape}, must be [n, 4]"
    )
  return array


def _number(value: Any) -> float:
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan


def _as_texts(value: Any) -> tuple[str, ...]:
  value = _json(value)
  if value is None:
    return ()
  if isinstance(value, str):
    return (value,)
  return tuple(
    x.decode("utf-8", "replace") if isinstance(x, bytes) else _text(x)
    for x in value
  )


def _text(value: Any) -> str:
  if value is None or isinstance(value, str):
    return value or ""
  raise BadBoxes(
    "no text", f"the text of a box is {value!r}: must be a text, no number"
  )


def _as_scores(value: Any, count: int) -> np.ndarray:
  numbers = [_number(score) for score in np.asarray(value).ravel()]
  if len(numbers) != count:
    raise BadBoxes(
      "other shape", f"has {count} boxes, and {len(numbers)} scores for them"
    )
  return np.array(numbers, np.float64)


def _json(value: Any) -> Any:
  """Returns what a cell of a table says, if that is a list in JSON."""
  if isinstance(value, bytes):
    value = value.decode("utf-8", "replace")
  if isinstance(value, str) and value.lstrip().startswith("["):
    try:
      return json.loads(value)
    except (ValueError, RecursionError):
      return value
  return value or None if isinstance(value, str) else value


def _shown(box: np.ndarray) -> str:
  return f"[{', '.join(f'{x:.4g}' for x in box)}]"


def _hint(problem: str, form: str, box: np.ndarray) -> str:
  """Returns what explains most of a kind: pixels that are read as fractions."""
  if problem == "outside the image" and form == "yxyx" and box.max() > 2:
    return " of (0, 1) fractions, which config.data.boxes.format='yxyx' is"
  return ""
