"""What a source gives, and what the formats give to it."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Protocol

import numpy as np

from big_siglip.data.faults import Fault
from big_siglip.data.sources.nested import dig
from big_siglip.errors import UserError

# What data sets call their captions, best first, where nothing else is asked.
TEXT_NAMES = (
  "captions",
  "caption",
  "texts",
  "text",
  "txt",
  "TEXT",
  "alt_text",
  "sentences",
  "title",
)
# What they call a label.
LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "cls")
# What they call an example.
NAME_NAMES = (
  "name",
  "__key__",
  "key",
  "id",
  "image_id",
  "filename",
  "file_name",
  "image/filename",
)


@dataclasses.dataclass(frozen=True)
class Example:
  """One image and all that is said of it."""

  image: bytes | np.ndarray  # Encoded (JPEG, PNG ...), or its embedding.
  texts: tuple[str, ...]  # At least one.
  name: str  # What logs call it.
  label: int | None = None  # An index into the source's `class_names`.
  # How likely each text is to be drawn; None: all alike.
  weights: tuple[float, ...] | None = None
  # Those of `config.data.fields`, as they are stored; None where it lacks one.
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Source(Protocol):
  """What `open_source` returns; may be pickled, so that workers can read it.

  `[i]` raises `errors.BadExample` for an example that cannot be used. A source
  may have `faults`, a tuple of `faults.Fault`: what was found at its opening;
  and `image_index`, where several examples are of one image: from the number of
  an example to that of the first one with its image.
  """

  class_names: tuple[str, ...] | None

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Filters:
  """Which examples to keep, by what the data set says of them.

  Attributes:
    min_size: pixels of the shorter side, at least.
    max_aspect: longer by shorter side, at most.
    min_score: at least so much in the field `score_key`.
    score_key: such as a similarity to the image, or an aesthetic score.
    language: what the field `language_key` must say.
    language_key: a field.
  """

  min_size: int | None = None
  max_aspect: float | None = None
  min_score: float | None = None
  score_key: str | None = None
  language: str | None = None
  language_key: str = "language"


@dataclasses.dataclass(frozen=True)
class Options:
  """How records become examples: the fields of `config.data` of these names.

  Attributes:
    image_key: the field that holds the image; None: found by its type.
    text_keys: the fields that hold texts, or (field, weight) pairs; none: found
      by type and name.
    label_key: the field that holds the label; None: found by its type.
    captions: "random": all texts belong to one example, of which one is drawn;
      "all": each is an example of its own.
    templates: texts with one "{}" each, in whose place a caption comes.
    fields: further fields, such as boxes or masks, for views.
    box_keys: which of these hold boxes and their texts, where some do.
    filters: which examples to keep.
    retry_seconds: for how long to try again when storage is not reached.
    max_skipped: the share of missing shards that is let pass.
    needs_texts: whether an example without a text is none.
  """

  image_key: str | None = None
  text_keys: tuple[str | tuple[str, float], ...] = ()
  label_key: str | None = None
  captions: str = "random"
  templates: tuple[str, ...] = ()
  fields: tuple[str, ...] = ()
  box_keys: tuple[str, str] = ("boxes", "box_texts")
  filters: Filters = Filters()
  retry_seconds: float = 60.0
  max_skipped: float = 0.1
  needs_texts: bool = True

  @classmethod
  def of(cls, data: Mapping[str, Any]) -> "Options":
    """Returns what the section `config.data` says."""
    # Runs of before there was a choice lack some.
    names = {field.name for field in dataclasses.fields(cls)} & set(data)
    values = {name: data[name] for name in names}
    for name in names & {"text_keys", "templates", "fields"}:
      values[name] = tuple(
        item if isinstance(item, str) else tuple(item) for item in data[name]
      )
    if "boxes" in data:
      values["box_keys"] = data["boxes"]["key"], data["boxes"]["text_key"]
    if "filters" in names:
      values["filters"] = Filters(**data["filters"])
    return cls(**values)

  def for_evaluation(self) -> "Options":
    """Returns the same fields, without what is meant for training."""
    return dataclasses.replace(
      self,
      text_keys=tuple(self.text_weights),
      captions="random",
      templates=(),
      fields=(),
      filters=Filters(),
    )

  @property
  def text_weights(self) -> dict[str, float]:
    """Returns the weight of every named text field, 1 where none is given."""
    pairs = [(k, 1.0) if isinstance(k, str) else k for k in self.text_keys]
    return dict(pairs)


@dataclasses.dataclass(frozen=True)
class Record:
  """One record as it is stored: fields by name, nothing decoded."""

  name: str
  fields: Mapping[str, Any]


class Records(Protocol):
  """What each format implements: random access to records.

  Attributes:
    where: what messages call it.
    image_key: the field that holds the image.
    text_keys: the fields that hold texts.
    label_key: the field that holds the label, an int; None without labels.
    class_names: what the labels mean; None where that is not known.
    field_names: the fields that there are, but for the image of a folder.
    faults: shards that cannot be read.
  """

  where: str
  image_key: str
  text_keys: tuple[str, ...]
  label_key: str | None
  class_names: tuple[str, ...] | None
  field_names: tuple[str, ...]
  faults: tuple[Fault, ...]

  def __len__(self) -> int: ...

  def read(self, index: int) -> Record:
    """Returns a record.

    Raises:
      BadExample: it is damaged, missing or not reached.
    """

  def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns fields of all records, as `column` makes them, without images."""


def column(values: Sequence[Any]) -> np.ndarray:
  """Returns numbers as float64 with NaN for None; else an array of objects."""
  numbers = [v for v in values if v is not None]
  if all(isinstance(v, int | float | np.number) for v in numbers):
    return np.array([np.nan if v is None else v for v in values], np.float64)
  made = np.empty(len(values), object)
  made[:] = values
  return made


def require_fields(
  records: Records, known: Mapping[str, Any], further: Sequence[str] = ()
) -> None:
  """Checks the fields that were chosen as image, texts and label, and others.

  Args:
    records: that chose them.
    known: the fields that there are.
    further: `Options.fields`.

  Raises:
    UserError: one is not there, or the image is to be text or label as well.
  """
  for field, keys in (
    ("image_key", [records.image_key]),
    ("text_keys", records.text_keys),
    ("label_key", [records.label_key]),
    ("fields", further),
  ):
    for key in keys:
      if key and key not in known and dig(known, key) is None:
        raise UserError(
          f"config.data.{field}={key!r}: {records.where} has no such field;"
          f" there are: {', '.join(known)}"
        )
  require_other_than_image(
    records.image_key, records.text_keys, records.label_key
  )


def require_other_than_image(
  image_key: str, text_keys: Sequence[str], label_key: str | None
) -> None:
  """Raises a `UserError` if the image is to be a text or the label as well."""
  for field, keys in (("text_keys", text_keys), ("label_key", [label_key])):
    if image_key in keys:
      raise UserError(f"config.data.{field}={image_key!r}: is the image")


def choose_text(
  options: Options,
  candidates: Sequence[str],
  preferred: Sequence[str],
  where: str,
  present: Sequence[str],
) -> tuple[str, ...]:
  """Returns the field of texts as `choose` does; none if none is needed."""
  try:
    return (choose("text_keys", candidates, preferred, where, present),)
  except UserError:
    if options.needs_texts:
      raise
    return ()


def choose(
  what: str,
  candidates: Sequence[str],
  preferred: Sequence[str],
  where: str,
  present: Sequence[str],
) -> str:
  """Returns the one field to take for a part of an example.

  Args:
    what: the config field that says it otherwise, such as "image_key".
    candidates: the fields of the right type.
    preferred: names, best first, that decide between several.
    where: what messages call the data set.
    present: all fields, whatever their types.

  Raises:
    UserError: there is none, or there are several.
  """
  if len(candidates) == 1:
    return candidates[0]
  for name in preferred:
    if name in candidates:
      return name
  found = f"several could be it: {', '.join(candidates)}"
  if not candidates:
    found = f"none has its type; there are: {', '.join(present) or 'none'}"
  raise UserError(
    f"config.data.{what}=None: must name a field of {where}; {found}"
  )
