"""Every legal field of a config, and its type."""

_OPTIONAL_INT = (int, type(None))
_OPTIONAL_STR = (str, type(None))
_NUMBER = (float, int)

# Every legal field and its type. `evals` maps names of the user's choice to
# `EVALUATION_FIELDS`.
FIELDS = {
  "seed": int,
  "total_steps": int,
  "batch_size": int,
  "loss": {"name": str, "chunk_size": _OPTIONAL_INT},
  "mesh": {"data": int, "fsdp": int, "tensor": int},
  "distributed": bool,
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
    "remat": str,
    "scan": bool,
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
    "resize": str,
    "crop_min_area": _NUMBER,
    "flip": bool,
    "tokenizer": str,
    "lowercase": bool,
    "pad_id": int,
    "num_workers": int,
    "num_threads": int,
  },
  "evals": {},
  "log_every": int,
  "checkpoint": {"every": int, "keep": int},
  "wandb": bool,
}
EVALUATION_FIELDS = {
  "kind": str,
  "data": str,
  "path": _OPTIONAL_STR,
  "split": str,
  "every": int,
  "batch_size": int,
  "templates": (tuple, list),
}
