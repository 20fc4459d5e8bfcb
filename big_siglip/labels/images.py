"""Labelled images of any data set, embedded by a model.

Shape letters: N images, E embedding width.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from typing import NamedTuple

from ml_collections import ConfigDict
import numpy as np

from big_siglip.data.batch import Batch
from big_siglip.data.sources import Example, Source
from big_siglip.embeddings.datasets import find_format
from big_siglip.errors import UserError
from big_siglip.evaluators import answers_of, classes_of
from big_siglip.evaluators.embed import Rows
from big_siglip.evaluators.loading import Loader
from big_siglip.trained.inference import Model
from big_siglip.training_data import evaluation_source

_NAME = "images"  # Of the section that messages speak of.
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Wanted:
  """A data set, and what to take of it.

  Attributes:
    path: where it lies; None of the project's own data sets.
    data: its format, one of `schema.sources.NAMES`; None: seen from the names.
    split: of it.
    label_key: the field that holds the label; None: found.
    classes_file: what to call the labels; None: the data set's own names.
  """

  path: str | None
  data: str | None = None
  split: str = "all"
  label_key: str | None = None
  classes_file: str | None = None

  def __str__(self) -> str:
    """Returns what messages call it."""
    place = self.path or self.data
    return f"{place}, split {self.split}"

  def section(self, kind: str) -> ConfigDict:
    """Returns it as a section of `config.evals`."""
    found = self.data or (self.path and find_format(self.path)) or "folder"
    return ConfigDict(
      {
        "kind": kind,
        "data": found,
        "path": self.path,
        "split": self.split,
        "batch_size": _BATCH,
        "image_key": None,
        "text_keys": (),
        "label_key": self.label_key,
        **(
          {"max_captions": None}
          if kind == "calibration"
          else {"classes_file": self.classes_file, "answers_file": None}
        ),
      }
    )


class Labelled(NamedTuple):
  """Images that were embedded, and their labels.

  Attributes:
    embeddings: NE float32, unit vectors.
    labels: N, numbers of `names`.
    index: N, the images' numbers in the data set.
    names: of each label, at least one.
    skipped: images that cannot be read, or have no finite embedding.
    unlabelled: images without a label.
    rows: all images of the data set.
  """

  embeddings: np.ndarray
  labels: np.ndarray
  index: np.ndarray
  names: tuple[tuple[str, ...], ...]
  skipped: int
  unlabelled: int
  rows: Rows


def open_source(model: Model, wanted: Wanted, kind: str) -> Source:
  """Returns the examples.

  Args:
    model: whose config says what to take of data of its training's format.
    wanted: the data set.
    kind: of an evaluation, see `Wanted.section`.

  Raises:
    UserError: they cannot be opened.
  """
  config = ConfigDict({"model": model.config.model, "data": model.config.data})
  config.evals = {_NAME: wanted.section(kind)}
  return evaluation_source(config, _NAME, wanted.split)


def has_labels(source: Source) -> bool:
  """Returns whether examples have labels."""
  return bool(source.class_names or getattr(source, "label_key", None))


def embed_labelled(
  model: Model,
  wanted: Wanted,
  source: Source,
  show: Callable[[int], None],
  kind: str,
) -> Labelled:
  """Embeds all images that have a label.

  Args:
    model: the model.
    wanted: what `source` was opened for.
    source: the examples.
    show: told how many more images are done.
    kind: "classification" if labels must have names, since a text tower is to
      read them; "linear_probe": numbers are labels too.

  Raises:
    UserError: there are no labels, or those of less than two classes.
  """
  classes, answers = classes_of(wanted.section(kind), source)
  rows = load_images(model, wanted, source, show, answers_of(answers))
  embeddings, values = rows.embed(
    model.embedder("images"), model.params, labels=("answers",)
  )
  labels = values["answers"][:, 0]
  known = labels >= 0
  good = known & values["finite"]
  if len(np.unique(labels[good])) < 2:
    raise UserError(
      f"{wanted}: has images of {len(np.unique(labels[good]))} labels; must "
      "have those of two at least"
    )
  return Labelled(
    embeddings=embeddings[good],
    labels=labels[good],
    index=values["index"][good],
    names=classes.names,
    skipped=len(source) - len(labels) + int((known & ~good).sum()),
    unlabelled=int((~known).sum()),
    rows=rows,
  )


def load_images(
  model: Model,
  wanted: Wanted,
  source: Source,
  show: Callable[[int], None],
  extra: Callable[[Example], Batch] = lambda example: {},
) -> Rows:
  """Returns a data set's images, for a pass over them that tells of itself."""
  devices = model.embedders.devices
  loader = Loader(str(wanted), model.preprocess, _BATCH, devices)
  return shown(loader.images(source, extra), show)


def shown(rows: Rows, show: Callable[[int], None]) -> Rows:
  """Returns the rows, with passes that tell how many were taken."""

  def batches() -> Iterator[Mapping[str, np.ndarray]]:
    for batch in rows.batches():
      yield batch
      show(int(batch["mask"].sum()))

  return dataclasses.replace(rows, batches=batches)
