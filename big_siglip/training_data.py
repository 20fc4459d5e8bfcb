"""Opens data sets as a config asks for them."""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from big_siglip.data.duplicates import first_of_each
from big_siglip.data.first_look import first_look
from big_siglip.data.mixture import Mixture, Subset
from big_siglip.data.sources import open_source, Options, Source
from big_siglip.data.sources.example import LABEL_NAMES
from big_siglip.datasets.known import default_data_dir
from big_siglip.errors import naming, raise_problems
from big_siglip.schema.sizes import resolve_image

# Fields that an evaluation has of the run, or sets itself.
KEYS = ("image_key", "text_keys", "label_key")
# Whether images that are evaluated were trained on.
TRAINED, IN_PART, PERHAPS, HELD_OUT, OTHER = (
  *("trained on", "in part trained on", "perhaps trained on"),
  *("held out", "of other data"),
)


def source(
  config: ConfigDict,
  name: str,
  split: str,
  path: str | None,
  options: Options,
  fields: Mapping[str, str] | None = None,
) -> Source:
  """Returns the examples of `open_source`.

  Args:
    config: the config.
    name: of the data set.
    split: of it.
    path: where it lies.
    options: what to take of it.
    fields: which fields of the config `name`, `split` and `path` are, where not
      those of `config.data`: "config.data.path" -> "config.evals.NAME.path".

  Raises:
    UserError: they cannot be opened, or are embeddings that do not fit the
      image tower of `config`.
  """
  with naming(fields or {}):
    opened = open_source(name, split, path, options)
  if name == "embeddings":
    # Imported late: it needs a library that is optional, and here now.
    from big_siglip.data.sources.embedded import check_images

    check_images(
      opened.description,
      path,
      width=config.model.embed_dim or resolve_image(config.model.image).width,
      config=config,
    )
  return opened


def evaluation_source(config: ConfigDict, name: str, split: str) -> Source:
  """Returns the examples of an evaluation.

  Fields are those of the section, or else of `config.data` if its format is
  the same one. Where labels are needed and no field has their type, a field
  with a label's name is taken, and a line says so.

  Args:
    config: the config.
    name: of the section in `config.evals`.
    split: of its data set.

  Raises:
    UserError: as `source`.
  """
  spec, section = config.evals[name], f"config.evals.{name}"
  fields = {
    "config.data.name": f"{section}.data",
    "config.data.path": f"{section}.path",
    "config.data.split": f"{section}."
    + ("split" if split == spec.split else "train_split"),
  }
  for key in KEYS:
    if spec.get(key):
      fields[f"config.data.{key}"] = f"{section}.{key}"
  labelled = "answers_file" in spec
  masks = spec.get("mask_key")
  boxes = "box_key" in spec
  further = (masks,) if masks else ()
  of_texts = not labelled and not masks and spec.get("kind") != "correspondence"
  options = evaluation_options(spec, config.data)
  if masks:
    fields["config.data.fields"] = f"{section}.mask_key"
  if boxes:
    further = spec.box_key, spec.box_text_key
    options = dataclasses.replace(options, box_keys=further)
    fields["config.data.fields"] = f"{section}.box_key or box_text_key"
  options = dataclasses.replace(
    options, needs_texts=of_texts and not boxes, fields=further
  )
  opened = source(config, spec.data, split, spec.path, options, fields)
  if not labelled or spec.answers_file:
    return opened
  there = getattr(opened, "field_names", ())
  labels = [key for key in LABEL_NAMES if key in there]
  if not labels or opened.label_key:
    return opened
  logging.warning(
    "%s.label_key=None: %r is taken, of the fields %s",
    *(section, labels[0], ", ".join(there)),
  )
  options = dataclasses.replace(options, label_key=labels[0])
  return source(config, spec.data, split, spec.path, options, fields)


def evaluation_options(
  spec: Mapping[str, Any], data: Mapping[str, Any]
) -> Options:
  """Returns what to take of a data set that is evaluated.

  Args:
    spec: a section of `config.evals`.
    data: `config.data` of the run: its fields hold for data of its format.
  """
  # Imported weights were trained on data that they do not name.
  same = spec["data"] == data.get("name")
  options = Options.of(data) if same else Options()
  own = {key: spec.get(key) for key in KEYS if spec.get(key)}
  return dataclasses.replace(options, **own).for_evaluation()


def trained_on(config: ConfigDict, spec: Mapping[str, Any]) -> str:
  """Returns whether the images of an evaluation are those of the training.

  Data sets are compared by format, place and split; images are not, so that
  what lies in two places is `OTHER`.

  Args:
    config: of the run.
    spec: a section of `config.evals`.

  Returns:
    One of `TRAINED`, `IN_PART`, `PERHAPS`, `HELD_OUT` and `OTHER`.
  """
  data = config.get("data", {})
  entries = list(dict(data.get("mixture", {})).values()) or [data]
  found = {_compare(entry, spec) for entry in entries}
  order = (TRAINED, IN_PART, PERHAPS, HELD_OUT, OTHER)
  return next(answer for answer in order if answer in found)


def _compare(entry: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
  path = _place(entry.get("path"))
  if path != _place(spec["path"]):
    return OTHER
  if spec.get("captions_file"):  # Its images may be any of those in the folder.
    return PERHAPS if path else OTHER
  if entry.get("name") != spec["data"]:
    return OTHER
  trained, measured = entry.get("split", "all"), spec["split"]
  if trained in ("all", measured):
    return TRAINED
  if measured == "all":
    return IN_PART
  parts = [split.partition("[")[0] for split in (trained, measured)]
  return (
    PERHAPS if parts[0] == parts[1] or "+" in trained + measured else HELD_OUT
  )


def _place(path: str | None) -> str | None:
  """Returns a path as it can be compared."""
  if path is None or "://" in path:
    return path and path.rstrip("/")
  return os.path.realpath(os.path.expanduser(path))


def train_source(
  config: ConfigDict, say: Callable[[str], None] | None = None
) -> Source:
  """Returns the examples to train on: one source, or a `Mixture`.

  Args:
    config: the config.
    say: shows a line of what was understood of the data; None: nothing is.

  Raises:
    UserError: a data set, its split or its path is wrong.
  """
  found = _train_source(config)
  if say:
    say("\n".join(first_look(found)))
  return found


def _train_source(config: ConfigDict) -> Source:
  data = config.data
  entries = dict(data.mixture.items()) or {"": data}
  options = Options.of(data)
  sources = {
    name: source(
      config, entry.name, entry.split, entry.path, options, _fields(name)
    )
    for name, entry in entries.items()
  }
  if data.deduplicate != "none":
    known = {
      name: f"{entry.name}:{entry.path}:{entry.split}:{options.filters}"
      for name, entry in entries.items()
    }
    kept = first_of_each(sources, known, data.deduplicate, default_data_dir())
    sources = {name: Subset(sources[name], kept[name]) for name in sources}
  if not data.mixture:
    return sources[""]
  empty = [name for name in sources if not len(sources[name])]
  why = f"is empty with config.data.deduplicate={data.deduplicate!r}"
  raise_problems([f"config.data.mixture.{name}: {why}" for name in empty])
  weights = {name: entry.weight for name, entry in entries.items()}
  return Mixture(sources, weights)


def _fields(name: str) -> dict[str, str]:
  """Returns the fields of an entry of the mixture; none for the only source."""
  if not name:
    return {}
  section = f"config.data.mixture.{name}"
  return {
    f"config.data.{f}": f"{section}.{f}" for f in ("name", "split", "path")
  }
