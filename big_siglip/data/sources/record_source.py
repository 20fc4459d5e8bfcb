"""From records, whatever their format, to examples."""

from collections.abc import Sequence
from typing import Any

from absl import logging
import numpy as np

from big_siglip.data.sources.example import (
  dig,
  Example,
  Filters,
  Options,
  Records,
)
from big_siglip.errors import BadExample, UserError

_SIZE_KEYS = (  # Width and height in pixels, as data sets call them.
  ("width", "height"),
  ("WIDTH", "HEIGHT"),
  ("original_width", "original_height"),
  ("image_width", "image_height"),
  ("json/width", "json/height"),
)


class RecordSource:
  """The examples of some records, after filters; a `Source`.

  Attributes:
    class_names: what the labels mean; None where that is not known.
    label_key: the field that holds the label; None without labels.
    field_names: the fields that there are.
    faults: shards that cannot be read.
    filtered: how many examples each filter took out.
  """

  def __init__(self, records: Records, options: Options):
    """Applies the filters, and counts the captions if each is an example.

    Raises:
      UserError: the data does not say what a filter needs, or none is left.
    """
    self._records = records
    self._weights = options.text_weights
    self._weighted = any(not isinstance(k, str) for k in options.text_keys)
    self._templates = options.templates
    self._fields = options.fields
    self._needs_texts = options.needs_texts
    self.class_names = records.class_names
    self.label_key = records.label_key
    self.field_names = records.field_names
    self.faults = records.faults
    self._kept, self.filtered = _filter(records, options.filters)
    # Where the captions of each kept record begin, if each is an example.
    self._ends = None
    if options.captions == "all":
      self._ends = self._count_captions()
    self._tell()

  def __len__(self) -> int:
    if self._ends is not None:
      return int(self._ends[-1]) if len(self._ends) else 0
    return self.num_images

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):  # What ends a `for` over the source.
      raise IndexError(index)
    caption = None
    if self._ends is not None:
      caption = index - self.image_index(index)
      index = int(np.searchsorted(self._ends, index, side="right"))
    index = int(index if self._kept is None else self._kept[index])
    record = self._records.read(index)
    try:
      return self._example(record.name, record.fields, caption)
    except BadExample as error:
      error.name = error.name or record.name
      raise

  @property
  def num_images(self) -> int:
    """How many images there are: less than examples, if captions are these."""
    return len(self._records) if self._kept is None else len(self._kept)

  def label_numbers(self) -> tuple[int, ...]:
    """Returns the labels that there are, ascending; reads no image.

    One below 0 stands for none, as in tests whose labels are kept secret.
    """
    values = _numbers(self._records.columns([self.label_key])[self.label_key])
    values = values if self._kept is None else values[self._kept]
    values = values[np.isfinite(values) & (values >= 0)]
    return tuple(np.unique(values).astype(int).tolist())

  def texts(self) -> list[tuple[str, ...]]:
    """Returns the captions of all records that are kept; reads no image."""
    records = self._records
    columns, found = records.columns(records.text_keys), []
    kept = range(len(records)) if self._kept is None else self._kept
    for index in map(int, kept):
      fields = {key: values[index] for key, values in columns.items()}
      try:  # A label may be a text.
        found.append(self._texts(fields, self._label(fields))[0])
      except BadExample:  # It is met when it is read.
        found.append(())
    return found

  def image_index(self, index: int) -> int:
    """Returns the number of the first example with the image of this one.

    Where each caption is an example, those of an image have one number.
    """
    if self._ends is None:
      return index
    number = int(np.searchsorted(self._ends, index, side="right"))
    return int(self._ends[number - 1]) if number else 0

  def _example(self, name: str, fields: Any, caption: int | None) -> Example:
    records = self._records
    label = self._label(fields)
    texts, weights = self._texts(fields, label)
    if caption is not None:
      texts, weights = texts[caption : caption + 1], None
    if not texts and self._needs_texts:
      raise BadExample(f"no text in {', '.join(records.text_keys)}", "caption")
    if self._templates:
      filled = [t.replace("{}", x) for x in texts for t in self._templates]
      texts = tuple(filled)
      if weights:
        share = len(self._templates)
        weights = tuple(w / share for w in weights for _ in range(share))
    image = _as_image(fields.get(records.image_key))
    if not self._fields:
      return Example(image, texts, name, label, weights)
    further = {key: dig(fields, key) for key in self._fields}
    return Example(image, texts, name, label, weights, further)

  def _label(self, fields: Any) -> int | None:
    key = self._records.label_key
    if not key or fields.get(key) is None:
      return None
    return _as_label(fields[key], self.class_names)

  def _texts(
    self, fields: Any, label: int | None
  ) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Returns all texts and, where fields have weights, one for each."""
    texts, weights = [], []
    for key in self._records.text_keys:
      if key == self._records.label_key and self.class_names:
        found = [] if label is None else [self.class_names[label]]
      else:
        found = as_texts(fields.get(key))
      texts += found
      # A field's weight is shared by its texts.
      share = self._weights.get(key, 1.0) / max(1, len(found))
      weights += [share] * len(found)
    if not self._weighted:
      return tuple(texts), None
    total = sum(weights)
    return tuple(texts), tuple(weight / total for weight in weights)

  def _count_captions(self) -> np.ndarray:
    keys = self._records.text_keys
    counts = np.zeros(len(self._records), np.int64)
    for key, values in self._records.columns(keys).items():
      if key == self._records.label_key and self.class_names:
        counts += 1
      else:
        counts += [len(as_texts(value)) for value in values]
    if self._kept is not None:
      counts = counts[self._kept]
    if without := int((counts == 0).sum()):
      self.filtered["no caption"] = without
    return np.cumsum(counts)

  def _tell(self) -> None:
    """Says what was left out, or that nothing is left."""
    where = self._records.where
    taken = ", ".join(f"{k}: {n}" for k, n in self.filtered.items())
    if not len(self):
      because = f" after config.data.filters ({taken})" if taken else ""
      raise UserError(f"{where}: the data set is empty{because}")
    for fault in self.faults:
      logging.warning("%s: %s (%s)", fault.name, fault.reason, fault.kind)
    if taken:
      total = len(self._records)
      logging.warning(
        "%s: %d examples of %d records; left out: %s",
        where,
        len(self),
        total,
        taken,
      )


def as_texts(value: Any) -> list[str]:
  """Returns the texts of a field: of one, of several, or of none."""
  if isinstance(value, bytes):
    value = value.decode("utf-8", "replace")
  if isinstance(value, str):
    return [value] if value.strip() else []
  if isinstance(value, list | tuple | np.ndarray):
    return [text for item in value for text in as_texts(item)]
  return []


def _as_image(value: Any) -> bytes | np.ndarray:
  if isinstance(value, np.ndarray):
    return value  # Embedded.
  if isinstance(value, dict):  # The Hub's struct of bytes and path.
    value = value.get("bytes")
  if not isinstance(value, bytes):
    raise BadExample("holds no image", "image")
  return value


def _as_label(value: Any, class_names: Sequence[str] | None) -> int:
  try:
    label = int(value)
  except (TypeError, ValueError) as error:
    raise BadExample(f"label {value!r} is no number", "record") from error
  if class_names and not 0 <= label < len(class_names):
    count = len(class_names)
    raise BadExample(f"label {label} is none of {count} classes", "record")
  return label


def _filter(
  records: Records, filters: Filters
) -> tuple[np.ndarray | None, dict[str, int]]:
  """Returns the numbers of what is kept, None for all, and what went why."""
  keep = np.ones(len(records), bool)
  filtered = {}

  def drop(why: str, bad: np.ndarray) -> None:
    if count := int((keep & bad).sum()):
      filtered[why] = count
    keep[bad] = False

  if filters.min_size is not None or filters.max_aspect is not None:
    width, height = _sizes(records)
    drop("no size", ~((width > 0) & (height > 0)))
    short, long = np.minimum(width, height), np.maximum(width, height)
    if filters.min_size is not None:
      drop(f"min_size={filters.min_size}", short < filters.min_size)
    if filters.max_aspect is not None:
      drop(
        f"max_aspect={filters.max_aspect}", long > filters.max_aspect * short
      )
  if filters.min_score is not None:
    score = _numbers(_needed(records, filters.score_key, "score_key"))
    drop("no score", np.isnan(score))
    drop(f"min_score={filters.min_score}", score < filters.min_score)
  if filters.language is not None:
    values = _needed(records, filters.language_key, "language_key")
    other = [filters.language not in as_texts(value) for value in values]
    drop(f"language={filters.language}", np.array(other, bool))
  return (None if keep.all() else np.flatnonzero(keep)), filtered


def _sizes(records: Records) -> tuple[np.ndarray, np.ndarray]:
  for keys in _SIZE_KEYS:
    columns = [_numbers(records.columns([key])[key]) for key in keys]
    if not all(np.isnan(column).all() for column in columns):
      return columns[0], columns[1]
  raise UserError(
    f"config.data.filters: min_size and max_aspect need sizes; {records.where}"
    f" has none of the fields {', '.join('/'.join(k) for k in _SIZE_KEYS)}"
  )


def _needed(records: Records, key: str, field: str) -> np.ndarray:
  values = records.columns([key])[key]
  if all(value is None or value != value for value in values):
    raise UserError(
      f"config.data.filters.{field}={key!r}: {records.where} has no such field"
    )
  return values


def _numbers(values: np.ndarray) -> np.ndarray:
  """Returns float64, NaN for what is no number."""

  def number(value: Any) -> float:
    try:
      return float(value)
    except (TypeError, ValueError):
      return np.nan

  if values.dtype == np.float64:
    return values
  return np.array([number(value) for value in values], np.float64)
