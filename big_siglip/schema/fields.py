"""The table of all fields: type, words, range, and what resuming may change.

configs/base.py says what each is for, and gives all their values.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

from ml_collections import ConfigDict

from big_siglip.schema import logs, sources, words
from big_siglip.schema.evaluations import EVALUATIONS, KEYS
from big_siglip.schema.field import (
  complete,
  Field,
  leaves,
  misshapen,
  misshapen_named,
  Range,
  rgb,
  Sections,
)
from big_siglip.schema.terms import TERMS

_COUNT, _NOT_NEGATIVE = Range(least=1), Range(least=0)
_POSITIVE = Range(above=0, below=math.inf)
_free = functools.partial(Field, resumes=True)
_size = functools.partial(Field, int | None)
_trained = functools.partial(Field, of_weights=True)
_unset = functools.partial(Field, older=None)

_TOWER = {"width": _size(), "depth": _size(), "mlp_dim": _size()}
_TOWER |= {"num_heads": _size()}

_MODEL = {
  "image": {
    "size": _trained(str),
    "image_size": _trained(int, within=_COUNT),
    "pooling": _trained(str, ("map", "cls", "gap", "none")),
    "head": _trained(bool),
    "drop_border": _trained(bool),
    "max_patches": Field(int | None, within=_COUNT, older=None),
    "mean": rgb(float | int, Range(least=-255, most=255), (0.5, 0.5, 0.5)),
    "std": rgb(float | int, Range(above=0, most=255), (0.5, 0.5, 0.5)),
    "patch_size": _size(),
    **_TOWER,
  },
  "text": {
    "size": _trained(str),
    "vocab_size": _trained(int, within=_COUNT),
    "length": _trained(int, within=_COUNT),
    "pooling": _trained(str, ("last", "map", "mean", "cls", "none")),
    "head": _trained(bool),
    **_TOWER,
  },
  "embed_dim": Field(int | None, within=_COUNT),
  "dtype": Field(str, words.DTYPES),
  "attention": _free(str, words.ATTENTIONS, older="auto", was={"jax": "xla"}),
  "remat": _free(str, words.REMATS),
  "keep_blocks": _free(int, within=_NOT_NEGATIVE, older=0),
  "scan": Field(bool),
  "slice_tokens": _free(int | None, within=_COUNT, older=None),
  "lora": {
    "rank": Field(int, within=_NOT_NEGATIVE, older=0),
    "alpha": Field(float | int, older=8.0),
    "targets": Field(str, older=".*/attention/.*/kernel"),
  },
  "logit_scale_init": Field(float | int, within=_POSITIVE),
  "logit_bias_init": Field(float | int),
}
_OPTIMIZER = {
  "name": Field(str, ("adamw", "adafactor", "lion")),
  "learning_rate": Field(float | int, within=_POSITIVE),
  "schedule": Field(str, words.SCHEDULES),
  "warmup_steps": Field(int, within=_NOT_NEGATIVE),
  "cooldown_steps": Field(int, within=_NOT_NEGATIVE),
  "timescale": Field(int, within=_COUNT),
  "schedule_steps": _unset(int | None, within=_COUNT),
  "stretch_from": Field(int, within=_NOT_NEGATIVE, older=0),
  "stretch": Field(float | int, within=Range(least=1), older=1.0),
  "b1": Field(float | int, within=Range(least=0, below=1)),
  "b2": Field(float | int, within=Range(least=0, below=1)),
  "mu_dtype": Field(str, words.DTYPES),
  "weight_decay": Field(float | int, within=_NOT_NEGATIVE),
  "clip_norm": Field(float | int, within=_NOT_NEGATIVE),
  "rules": Field(tuple | list),
}
_SOURCE = Field(str, rule=sources.mistake)
_MIXTURE = {
  "name": _SOURCE,
  "path": Field(str | None),
  "split": Field(str),
  "weight": Field(float | int | None, within=_POSITIVE),
}
_DATA = {
  "name": _SOURCE,
  "path": Field(str | None),
  "split": Field(str),
  "mixture": Sections(_MIXTURE),
  "deduplicate": Field(str, ("none", "image", "name"), older="none"),
  "fields": Field(tuple | list, older=()),
  "boxes": {
    "key": Field(str, older="boxes"),
    "text_key": Field(str, older="box_texts"),
    "format": Field(str, words.BOX_FORMATS, older="yxyx"),
  },
  **KEYS,
  "label_key": _unset(str | None),
  "captions": Field(str, ("random", "all"), older="random"),
  "templates": Field(tuple | list, older=()),
  "filters": {
    "min_size": _unset(int | None, within=_COUNT),
    "max_aspect": _unset(float | int | None, within=_COUNT),
    "min_score": _unset(float | int | None),
    "score_key": _unset(str | None),
    "language": _unset(str | None),
    "language_key": Field(str, older="language"),
  },
  "retry_seconds": _free(float | int, within=_NOT_NEGATIVE, older=60.0),
  "decoder": Field(str, ("pillow", "fast"), older="pillow"),
  "resize": _trained(str, words.RESIZES),
  "crop": _trained(str, words.CROPS, older="none"),
  "crop_fraction": _trained(
    float | int, within=Range(least=0.1, most=10), older=1.0
  ),
  "fill": rgb(int, Range(least=0, most=255), (0, 0, 0)),
  "patch_lengths": Field(
    tuple | list | None, each=Field(int, within=_COUNT), older=None
  ),
  "halve_from": Field(int | None, within=_COUNT, older=None),
  "crop_min_area": Field(float | int, within=Range(above=0, most=1)),
  "flip": Field(bool),
  "tokenizer": _trained(str),
  "lowercase": _trained(bool),
  "clean": _trained(str, words.CLEANINGS, older="none"),
  "pad_id": _trained(int, within=_NOT_NEGATIVE),
  "max_skipped": _free(float | int, within=Range(least=0, most=1), older=0.1),
  "num_workers": _free(int, within=_NOT_NEGATIVE),
  "num_threads": _free(int, within=_COUNT),
  "stall_seconds": _free(float | int, within=_NOT_NEGATIVE, older=300.0),
}

FIELDS = {
  "seed": Field(int, within=_NOT_NEGATIVE),
  "total_steps": Field(int, within=_COUNT),
  "batch_size": Field(int, within=_COUNT),
  "microbatch": _free(int | None, within=_COUNT, older=None),
  "loss": {
    "name": Field(str, words.LOSSES),
    "chunk_size": Field(int | None, within=_COUNT),
    "dtype": Field(str, words.DTYPES, older="float32"),
    "duplicates": Field(str, words.DUPLICATES, older="negative"),
    "same": Field(str, ("text", "image", "either"), older="text"),
  },
  "terms": TERMS,
  "mesh": {
    "data": _free(int),
    "fsdp": _free(int),
    "tensor": _free(int),
    "slices": _free(int, within=_COUNT, older=1),
  },
  "distributed": _free(bool),
  "init": {  # It decides about the first step alone.
    "path": _free(str | None, older=None),
    "state": _free(str, ("params", "all"), older="params"),
    "towers": _free(str, ("both", "image", "text"), older="both"),
    "positions": _free(str, words.POSITIONS, older="big_vision"),
  },
  "model": _MODEL,
  "optimizer": _OPTIMIZER,
  "ema": {"decay": _unset(float | int | None, within=Range(above=0, below=1))},
  "nonfinite": Field(str, ("stop", "skip")),
  "data": _DATA,
  "evals": EVALUATIONS,
  "log_every": _free(int, within=_COUNT),
  "checkpoint": {
    "every": _free(int, within=_COUNT),
    "keep": _free(int, within=Range(least=2)),
  },
  "wandb": _free(bool),
  "logging": logs.FIELDS,
}


def shape_problems(config: ConfigDict) -> list[str]:
  """Returns a line for all that is missing, unknown or of a wrong type."""
  return list(misshapen(config, FIELDS, "config"))


def value_problems(config: ConfigDict) -> list[str]:
  """Returns a line for every value that its field does not allow.

  Args:
    config: without `shape_problems`.
  """
  return _wrong_values(config, FIELDS, "config")


def evaluation_problems(evals: Mapping[str, Any], path: str) -> list[str]:
  """Returns a line for every mistake that shows without data.

  Args:
    evals: {name: section}.
    path: what to call them, "config.evals".
  """
  problems = []
  for name, section in evals.items():
    one = {name: section}
    found = list(misshapen_named(one, EVALUATIONS, path))
    problems += found or _wrong_values(one, EVALUATIONS, path)
  return problems


def _wrong_values(section, fields, path: str) -> list[str]:
  return [
    f"{where}={value!r}: {rule}"
    for where, field, value in leaves(section, fields, path)
    if (rule := field.wrong_value(value))
  ]


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `config.json` of an older run, or of a model, means today.

  Args:
    config: as JSON reads it. A model's folder has `model` and `data` alone.
  """
  if "total_steps" in config:
    return complete(config, FIELDS)
  of_weights = {
    name: field
    for name, field in _DATA.items()
    if isinstance(field, Field) and field.of_weights
  }
  return complete(config, {"model": _MODEL, "data": of_weights})


def may_change(field: str) -> bool:
  """Returns whether a run may be resumed with another value of a field.

  Args:
    field: such as "data.num_workers"; one that is not known may not.
  """
  found: Any = FIELDS
  for name in field.split("."):
    if isinstance(found, Field | Sections):
      break
    found = found.get(name, {})
  return isinstance(found, Field | Sections) and found.resumes


def unset_fields(config: ConfigDict) -> list[str]:
  """Returns the fields that weights are to give, such as "data.tokenizer"."""
  return [
    where.removeprefix("config.")
    for where, field, value in leaves(config, FIELDS, "config")
    if field.of_weights and value is None
  ]
