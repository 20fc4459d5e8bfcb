"""Which data sets a report shows a run on, and for what."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from big_siglip import training_data
from big_siglip.data.sources import open_source, Options, Source
from big_siglip.errors import naming_evaluation
from big_siglip.evaluators import written
from big_siglip.evaluators.captions import open_captions
from big_siglip.report.runs import Run


class DataKey(NamedTuple):
  """What pool a run can be shown on: fields of `config.evals.NAME`."""

  name: str
  split: str
  path: str | None
  captions_file: str | None = None
  max_captions: int | None = None
  language: str | None = None
  options: Options = Options()

  @classmethod
  def of(cls, spec: Mapping[str, Any], data: Mapping[str, Any]) -> "DataKey":
    """Returns the key of an evaluation of a run with this `config.data`."""
    name, split = spec["data"], spec["split"]
    given = training_data.evaluation_options(spec, data)
    options = Options(given.image_key, given.text_keys, given.label_key)
    rest = {field: spec.get(field) for field in cls._fields[2:-1]}
    return cls(name, split, **rest, options=options)

  @property
  def images(self) -> tuple[str | None, ...]:
    """What tells the images, whatever is taken of them beside."""
    return self.name, self.split, self.path, self.captions_file


class Wanted(NamedTuple):
  """What a run wants of a data set.

  Attributes:
    name: of the section in `config.evals` that asks for it; None for what the
      run trains on.
    spec: of the classification; None without one.
    masks: of an evaluation of masks; None without one.
    captions: name of the section of an evaluation of captions that a decoder
      writes; None without one.
    boxes: the same, of boxes.
  """

  name: str | None
  spec: ConfigDict | None
  masks: ConfigDict | None = None
  captions: str | None = None
  boxes: str | None = None


def wanted(run: Run) -> dict[DataKey, Wanted]:
  """Returns what a run is evaluated on, and how it is classified there.

  What a decoder is evaluated on stands with other evaluations of these images,
  whatever it takes of them. A run without evaluations is shown on what it
  trains on.
  """
  config = ConfigDict(run.config)
  found: dict[DataKey, Wanted] = {}
  of_decoder = []
  for name, spec in config.get("evals", {}).items():
    if "data" not in spec or "split" not in spec:
      continue
    key = DataKey.of(spec, config.get("data", {}))
    if spec.get("kind") in written.KINDS:
      of_decoder.append((key, name, spec.kind))
      continue
    classifies = spec.get("kind") == "classification"
    segments = spec.get("mask_key") is not None
    known = found.get(key)
    better = known is None or not (known.spec or known.masks)
    if known is None or better and (classifies or segments):
      found[key] = Wanted(
        name, spec if classifies else None, spec if segments else None
      )
  for key, name, kind in of_decoder:
    known = next((k for k in found if k.images == key.images), key)
    field = "captions" if kind == "caption" else "boxes"
    own = found.setdefault(known, Wanted(name, None))
    if getattr(own, field) is None:
      found[known] = own._replace(**{field: name})
  if not found and "name" in config.get("data", {}) and "split" in config.data:
    data = config.data
    path = data.get("path")
    spec = {"data": data.name, "split": data.split, "path": path}
    found[DataKey.of(spec, data)] = Wanted(None, None)
  return found


def trained_on(run: Run, key: DataKey) -> bool:
  """Whether these are the examples that a run was trained on."""
  spec = {"data": key.name, **key._asdict()}
  found = training_data.trained_on(ConfigDict(run.config), spec)
  return found == training_data.TRAINED


def open_data(
  key: DataKey, config: Mapping[str, Any], name: str | None
) -> Source:
  """Returns the examples of a data set, as an evaluation of a run opens it.

  Args:
    key: the data set.
    config: of the run that asks for it.
    name: see `Wanted`.

  Raises:
    UserError: the data set is gone; the message names the evaluation.
  """
  if name is None:
    return open_source(key.name, key.split, key.path, key.options)
  with naming_evaluation(name):
    if key.captions_file is None:
      whole = ConfigDict(dict(config))
      return training_data.evaluation_source(whole, name, key.split)
    return open_captions(
      key.captions_file,
      key.path,
      split=key.split,
      max_captions=key.max_captions,
      language=key.language,
    )
