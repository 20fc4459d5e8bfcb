"""From records, whatever their format, to examples."""

from collections.abc import Sequence
from typing import Any

from absl import logging
import numpy as np

from big_siglip.data.sources.example import (
  Example,
  Options,
  Records,
)
from big_siglip.data.sources.filtering import apply_filters, numbers
from big_siglip.data.sources.nested import as_texts, dig
from big_siglip.data.sources.stored_images import as_image
from big_siglip.errors import BadExample, UserError


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
    self._box_texts = options.box_keys[1]
    # What numbers in their place mean, where the data set says so.
    names = getattr(records, "further_names", {})
    self._box_classes = names.get(self._box_texts)
    self._needs_texts = options.needs_texts
    self.class_names = records.class_names
    self._classes = {n: i for i, n in enumerate(records.class_names or ())}
    self._needs_label = options.label_key is not None
    self.label_key = records.label_key
    self.field_names = records.field_names
    self.faults = records.faults
    self._kept, self.filtered = apply_filters(records, options.filters)
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

  def about(self) -> str:
    """Returns what there is and which fields are taken, in a line."""
    records = self._records
    texts = ", ".join(map(repr, records.text_keys)) or "none"
    count = getattr(records, "num_texts", None)
    what = f"{len(records):,} images"
    what += f", {count:,} captions" if count is not None else ""
    line = f"{what} in {records.where}; image {records.image_key!r}"
    line += f", captions {texts}"
    if records.label_key:
      classes = f" ({len(self._classes)} classes)" if self._classes else ""
      line += f", label {records.label_key!r}{classes}"
    if records.text_keys == (records.label_key,):
      line += "; the names of labels are the captions"
    return line

  def label_numbers(self) -> tuple[int, ...]:
    """Returns the labels that there are, ascending; reads no image.

    One below 0 stands for none, as in tests whose labels are kept secret.
    """
    values = numbers(self._records.columns([self.label_key])[self.label_key])
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
    image = as_image(dig(fields, records.image_key))
    if not self._fields:
      return Example(image, texts, name, label, weights)
    further = {key: dig(fields, key) for key in self._fields}
    numbers = further.get(self._box_texts)
    if self._box_classes and numbers is not None:
      further[self._box_texts] = _named(numbers, self._box_classes)
    return Example(image, texts, name, label, weights, further)

  def _label(self, fields: Any) -> int | None:
    """Returns an index into the class names; None for none.

    Raises:
      BadExample: it is none, and labels were asked for.
    """
    key = self._records.label_key
    value = dig(fields, key) if key else None
    if isinstance(value, bytes):
      value = value.decode("utf-8", "replace").strip()
    if isinstance(value, np.ndarray):  # Or a number of numpy's.
      value = value.tolist()
    if value is None or value in ("", -1, "-1") or value != value:  # NaN.
      return None
    if isinstance(value, str) and value in self._classes:
      return self._classes[value]
    try:
      label = int(value)
      why = f"label {label} is none of {len(self._classes)} classes"
      if not self.class_names or 0 <= label < len(self.class_names):
        return label
    except (TypeError, ValueError):
      why = f"label {value!r} is no number"
    if self._needs_label:
      raise BadExample(why, "record")
    return None

  def _texts(
    self, fields: Any, label: int | None
  ) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Returns all texts and, where fields have weights, one for each."""
    texts, weights = [], []
    for key in self._records.text_keys:
      if key == self._records.label_key and self.class_names:
        found = [] if label is None else [self.class_names[label]]
      else:
        found = as_texts(dig(fields, key))
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


def _named(numbers: Sequence[int], names: Sequence[str]) -> list[str | None]:
  """Returns the names of classes; None for what is none."""
  count = len(names)
  return [names[n] if 0 <= int(n) < count else None for n in numbers]
