"""Every legal field of a config, and its type."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

_OPTIONAL_INT = (int, type(None))
_OPTIONAL_STR = (str, type(None))
_NUMBER = (float, int)
_OPTIONAL_NUMBER = (float, int, type(None))

# Every legal field and its type. `evals` maps names of the user's choice to
# sections of `EVALUATION_FIELDS`, `data.mixture` to ones of `MIXTURE_FIELDS`.
FIELDS = {
  "seed": int,
  "total_steps": int,
  "batch_size": int,
  "microbatch": _OPTIONAL_INT,
  "loss": {
    "name": str,
    "chunk_size": _OPTIONAL_INT,
    "dtype": str,
    "duplicates": str,
    "same": str,
  },
  "mesh": {"data": int, "fsdp": int, "tensor": int, "slices": int},
  "distributed": bool,
  "init": {"path": _OPTIONAL_STR, "towers": str, "positions": str},
  "model": {
    "image": {
      "size": str,
      "image_size": int,
      "pooling": str,
      "head": bool,
      "drop_border": bool,
      "patch_size": _OPTIONAL_INT,
      "width": _OPTIONAL_INT,
      "depth": _OPTIONAL_INT,
      "mlp_dim": _OPTIONAL_INT,
      "num_heads": _OPTIONAL_INT,
    },
    "text": {
      "size": str,
      "vocab_size": int,
      "length": int,
      "pooling": str,
      "head": bool,
      "width": _OPTIONAL_INT,
      "depth": _OPTIONAL_INT,
      "mlp_dim": _OPTIONAL_INT,
      "num_heads": _OPTIONAL_INT,
    },
    "embed_dim": _OPTIONAL_INT,
    "dtype": str,
    "attention": str,
    "remat": str,
    "scan": bool,
    "slice_tokens": _OPTIONAL_INT,
    "lora": {"rank": int, "alpha": _NUMBER, "targets": str},
    "logit_scale_init": _NUMBER,
    "logit_bias_init": _NUMBER,
  },
  "optimizer": {
    "name": str,
    "learning_rate": _NUMBER,
    "schedule": str,
    "warmup_steps": int,
    "cooldown_steps": int,
    "timescale": int,
    "b1": _NUMBER,
    "b2": _NUMBER,
    "mu_dtype": str,
    "weight_decay": _NUMBER,
    "clip_norm": _NUMBER,
    "rules": (tuple, list),
  },
  "nonfinite": str,
  "data": {
    "name": str,
    "path": _OPTIONAL_STR,
    "split": str,
    "mixture": {},
    "deduplicate": str,
    "image_key": _OPTIONAL_STR,
    "text_keys": (tuple, list),
    "label_key": _OPTIONAL_STR,
    "captions": str,
    "templates": (tuple, list),
    "filters": {
      "min_size": _OPTIONAL_INT,
      "max_aspect": _OPTIONAL_NUMBER,
      "min_score": _OPTIONAL_NUMBER,
      "score_key": _OPTIONAL_STR,
      "language": _OPTIONAL_STR,
      "language_key": str,
    },
    "retry_seconds": _NUMBER,
    "decoder": str,
    "resize": str,
    "crop_min_area": _NUMBER,
    "flip": bool,
    "tokenizer": str,
    "lowercase": bool,
    "clean": str,
    "pad_id": int,
    "max_skipped": _NUMBER,
    "num_workers": int,
    "num_threads": int,
    "stall_seconds": _NUMBER,
  },
  "evals": {},
  "log_every": int,
  "checkpoint": {"every": int, "keep": int},
  "wandb": bool,
}
MIXTURE_FIELDS = {
  "name": str,
  "path": _OPTIONAL_STR,
  "split": str,
  "weight": _OPTIONAL_NUMBER,
}
# Of each section of `evals`, by its kind: COMMON and the kind's own. A section
# may hold those of other kinds too, so that the kind can be overridden.
COMMON_EVALUATION_FIELDS = {
  "kind": str,
  "data": str,
  "path": _OPTIONAL_STR,
  "split": str,
  "every": int,
  "batch_size": int,
}
_LABELS = {
  "label_key": _OPTIONAL_STR,
  "classes_file": _OPTIONAL_STR,
  "answers_file": _OPTIONAL_STR,
}
_CAPTIONS = {
  "captions_file": _OPTIONAL_STR,
  "max_captions": _OPTIONAL_INT,
  "language": _OPTIONAL_STR,
}
EVALUATION_FIELDS = {
  "classification": {
    "templates": (tuple, list),
    "templates_file": _OPTIONAL_STR,
    "canonicalize": bool,
    **_LABELS,
  },
  "retrieval": _CAPTIONS,
  "fewshot": {
    "train_split": str,
    "shots": (tuple, list),
    "seeds": int,
    "l2": _NUMBER,
    **_LABELS,
  },
  "linear_probe": {
    "train_split": str,
    "penalties": (tuple, list),
    **_LABELS,
  },
  "calibration": {"prior": _OPTIONAL_NUMBER, **_CAPTIONS},
  "loss_health": {"loss_batch_size": int, **_CAPTIONS},
}


def field_problems(
  config: Any, fields: Mapping[str, Any], path: str
) -> Iterator[str]:
  """Yields a line for every field that is missing, unknown or of a wrong type.

  Args:
    config: a ConfigDict or a section of one.
    fields: {field: type, types, or fields of a section}.
    path: what to call the section, such as "config.model".
  """
  for field, types in fields.items():
    name = f"{path}.{field}"
    if field not in config:
      yield f"{name}: missing (configs/digits.py has every field)"
    elif isinstance(types, dict):
      if not isinstance(config[field], Mapping | ConfigDict):
        yield f"{name}={config[field]!r}: must be a section"
      else:
        yield from field_problems(config[field], types, name)
    elif not isinstance(config[field], types) or (
      isinstance(config[field], bool) and types is not bool
    ):
      allowed = types if isinstance(types, tuple) else (types,)
      names = " or ".join(
        t.__name__.replace("NoneType", "None") for t in allowed
      )
      yield f"{name}={config[field]!r}: must be {names}"
  if fields:  # Names below an empty section are the user's choice.
    for field in config:
      if field not in fields:
        yield f"{path}.{field}: unknown; known: {', '.join(sorted(fields))}"
