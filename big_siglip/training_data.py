"""Opens data sets as a config asks for them."""

from collections.abc import Callable, Mapping
import dataclasses

from absl import logging
from ml_collections import ConfigDict

from big_siglip.data.duplicates import first_of_each
from big_siglip.data.first_look import first_look
from big_siglip.data.mixture import Mixture, Subset
from big_siglip.data.sources import open_source, Options, Source
from big_siglip.data.sources.embedded import check_images, EmbeddedSource
from big_siglip.data.sources.example import LABEL_NAMES
from big_siglip.datasets.prepare import default_data_dir
from big_siglip.errors import naming, raise_problems
from big_siglip.schema.sizes import resolve_image


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
  if isinstance(opened, EmbeddedSource):
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
  options = _evaluation_options(config, spec.data)
  for key in ("image_key", "text_keys", "label_key"):
    if spec.get(key):
      options = dataclasses.replace(options, **{key: spec[key]})
      fields[f"config.data.{key}"] = f"{section}.{key}"
  labelled = "classes_file" in spec
  options = dataclasses.replace(
    options.for_evaluation(), needs_texts=not labelled
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


def _evaluation_options(config: ConfigDict, name: str) -> Options:
  """Returns what to take of a data set that is evaluated."""
  # Imported weights were trained on data that they do not name.
  same = name == config.data.get("name")
  return Options.of(config.data) if same else Options()


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
