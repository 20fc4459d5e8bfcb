"""Words of a config, which other modules implement."""

KERNELS = ("cudnn", "splash", "short")  # Attention that not all chips have.
ATTENTIONS = ("auto", "xla", "heads_first", *KERNELS)
REMATS = ("none", "full", "dots", "projections", "attention", "mlp", "offload")
DTYPES = ("float32", "bfloat16")
LOSSES = ("ring_sigmoid", "sigmoid", "ring_softmax", "softmax", "none")
DUPLICATES = ("negative", "ignore", "positive")
# Features of patches: `models.patches`.
PATCHES = ("last", "text", "value", "share", "attention")
POSITIONS = ("big_vision", "huggingface")
SCHEDULES = ("cosine", "rsqrt", "linear", "constant")
CLEANINGS = ("none", "html", "canonical")
RESIZES = (
  *("bilinear", "bicubic", "big_vision"),
  *("nearest", "lanczos", "box", "hamming"),
)
CROPS = ("none", "center", "shortest", "longest")
BOX_FORMATS = ("yxyx", "xyxy", "xywh")  # `data.boxes`.
# Tables of rows, by the ending of their file.
TABLES = (".csv", ".parquet", ".jsonl")
