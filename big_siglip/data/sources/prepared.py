"""Data sets that TFDS has prepared as ArrayRecord: any of them."""

from collections.abc import Iterator, Sequence
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from big_siglip.data.faults import Fault
from big_siglip.data.sources.array_records import (
  ArrayRecords,
  check_faults,
  Shard,
)
from big_siglip.data.sources.example import (
  choose,
  choose_text,
  column,
  NAME_NAMES,
  Options,
  Record,
  require_fields,
  TEXT_NAMES,
)
from big_siglip.data.sources.nested import dig
from big_siglip.data.sources.storage import Storage
from big_siglip.errors import BadExample, UserError

_Labels = tfds.features.ClassLabel


class PreparedRecords:
  """One split of a prepared data set; see `example.Records`.

  Fields of nested features have names such as "captions/text".
  """

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    options: Options,
    folder: str | None = None,
  ):
    """Looks for the shards; reads none.

    Args:
      builder: of a data set in ArrayRecord.
      split: as TFDS writes them: "train", "train[:90%]".
      options: which features to take.
      folder: where the shards lie, if not where the builder says.

    Raises:
      UserError: no such split or feature, another format, missing shards.
    """
    self.where = f"{builder.info.full_name}, split {split}"
    file_format = builder.info.file_format
    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
      raise UserError(
        f"{builder.info.full_name} is prepared as"
        f" {file_format and file_format.value}, which cannot be read by"
        " number: big-siglip rewrite_tfrecord --input="
        f"{folder or builder.data_path} --output=FOLDER writes it as"
        " ArrayRecord"
      )
    self._choose_features(builder.info.features, options)
    storage = Storage(options.retry_seconds)
    shards = _shards(builder, split, folder)
    self.faults = _missing(shards, storage)
    path = folder or str(builder.data_path)
    check_faults(path, self.faults, len(shards), options.max_skipped)
    self._records = ArrayRecords(shards, storage)

  def _choose_features(self, features, options: Options) -> None:
    kinds = dict(_flatten(features))
    self.field_names = tuple(kinds)
    images = [k for k, f in kinds.items() if isinstance(f, tfds.features.Image)]
    texts = [k for k, f in kinds.items() if _is_text(f)]
    labels = [k for k, f in kinds.items() if isinstance(f, _Labels)]
    where = self.where
    self.image_key = options.image_key or choose(
      "image_key", images, ("image",), where, [*kinds]
    )
    self.label_key = options.label_key
    if not self.label_key and labels:
      self.label_key = "label" if "label" in labels else labels[0]
    self.text_keys = tuple(options.text_weights)
    if not self.text_keys:
      self.text_keys = _choose_texts(
        texts, labels, self.label_key, options, where, [*kinds]
      )
    names = (n for n in NAME_NAMES if n in kinds and n not in self.text_keys)
    self._name_key = next(names, None)
    keys = (self.image_key, *self.text_keys, self.label_key, *options.fields)
    self._keys = tuple(key for key in keys if key)
    require_fields(self, kinds, options.fields)
    names = getattr(kinds.get(self.label_key), "names", None)
    self.class_names = tuple(names) if names else None
    self.further_names = {
      key: tuple(inner.names)
      for key in options.fields
      if isinstance(inner := _innermost(kinds.get(key)), _Labels)
      and inner.names
    }
    self._all = features
    names = [self._name_key] if self._name_key else []
    self._features = _part_of(features, [*self._keys, *names])

  def __len__(self) -> int:
    return len(self._records)

  def read(self, index: int) -> Record:
    """Returns a record, images undecoded; see `example.Records`."""
    fields = self._decode(self._records[index], index, self._features)
    name = dig(fields, self._name_key) if self._name_key else None
    if isinstance(name, bytes):
      name = name.decode("utf-8", "replace")
    return Record(
      str(name) if name is not None else self._records.name(index),
      {key: dig(fields, key) for key in self._keys},
    )

  def columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns fields of all records; reads each."""
    known = dict(_flatten(self._all))
    features = _part_of(self._all, [key for key in keys if key in known])
    values = {key: [] for key in keys}
    for index in range(len(self)):
      try:
        fields = self._decode(self._records[index], index, features)
      except BadExample:  # It will be met, and counted, when it is read.
        fields = {}
      for key in keys:
        values[key].append(dig(fields, key))
    return {key: column(found) for key, found in values.items()}

  def _decode(self, record: bytes, index: int, features) -> dict[str, Any]:
    try:
      # Undecoded: decoding an image would need TensorFlow.
      return features.deserialize_example_np(
        record, decoders=_undecoded(features)
      )
    # Whatever a record of other features, or none at all, leads TFDS to.
    except Exception as error:
      reason = f"{type(error).__name__}: {error}"
      raise BadExample(reason, "record", self._records.name(index)) from error


def _shards(builder, split: str, folder: str | None) -> list[Shard]:
  splits = builder.info.splits
  try:
    files = splits[split].file_instructions
  except (KeyError, ValueError) as error:
    allowed = ", ".join(splits) or "none"
    raise UserError(
      f"config.data.split={split!r}: must be one of {allowed}, or a part of"
      f" one, for {builder.info.name}"
    ) from error
  shards = []
  for file in files:
    path = os.fspath(file.filename)
    if folder:
      path = f"{folder.rstrip('/')}/{os.path.basename(path)}"
    shards.append(Shard(path, file.skip, file.take))
  return shards


def _missing(shards: Sequence[Shard], storage: Storage) -> tuple[Fault, ...]:
  faults = []
  for shard in shards:
    try:
      storage.stamp(shard.path)
    except BadExample as error:
      faults.append(Fault.of(-1, shard.path, error))
  return tuple(faults)


def _flatten(features, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields every feature by its path; sequences of features as the latter."""
  if isinstance(features, tfds.features.Sequence):
    features = features.feature
    if not isinstance(features, tfds.features.FeaturesDict):
      return
  for name, feature in features.items():
    inner = _innermost(feature)
    if isinstance(inner, tfds.features.FeaturesDict):
      yield from _flatten(inner, f"{prefix}{name}/")
    else:
      yield f"{prefix}{name}", inner if _is_text(inner) else feature


def _innermost(feature: Any) -> Any:
  """Returns what sequences of sequences hold."""
  while isinstance(feature, tfds.features.Sequence):
    feature = feature.feature
  return feature


def _is_text(feature: Any) -> bool:
  return isinstance(feature, tfds.features.Text)


def _choose_texts(
  texts, labels, label_key, options, where, present
) -> tuple[str, ...]:
  """Returns the text feature by name, or the label where there are no texts."""
  ends = {key.rsplit("/", 1)[-1]: key for key in reversed(texts)}
  firsts = {key.split("/", 1)[0]: key for key in reversed(texts)}
  for name in TEXT_NAMES:
    for found in (ends.get(name), firsts.get(name)):
      if found:
        return (found,)
  captions = [k for k in texts if k not in NAME_NAMES and not k.endswith("id")]
  if not captions and labels:
    return (label_key,)
  return choose_text(options, captions, TEXT_NAMES, where, present)


def _part_of(features, keys: Sequence[str]):
  """Returns the features of some paths alone; no others are then decoded."""
  wanted: dict[str, list[str]] = {}
  for key in keys:
    first, _, rest = key.partition("/")
    wanted.setdefault(first, []).append(rest)
  parts = {}
  for name, rests in wanted.items():
    feature = features[name]
    if any(rests):
      if isinstance(feature, tfds.features.Sequence):
        inner = _part_of(feature.feature, rests)
        feature = tfds.features.Sequence(inner)
      else:
        feature = _part_of(feature, rests)
    parts[name] = feature
  return tfds.features.FeaturesDict(parts)


def _undecoded(features) -> dict[str, Any]:
  """Returns decoders that leave images as they are, wherever they stand."""
  decoders = {}
  for name, feature in features.items():
    if isinstance(feature, tfds.features.Image):
      decoders[name] = tfds.decode.SkipDecoding()
    elif isinstance(feature, tfds.features.FeaturesDict):
      decoders[name] = _undecoded(feature)
  return decoders
