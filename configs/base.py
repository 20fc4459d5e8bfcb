"""Every field of a config, with what it is for; all others start from here.

from configs import base

def get_config():
  c = base.get_config()
  c.batch_size = 256
  return c

By itself it is a SigLIP B/16 at 224 pixels from scratch. What is derived from
another field follows it on the command line, by `c.get_ref("total_steps")`; a
plain copy needs `.identity()` too.
"""

from typing import Any

from ml_collections import config_dict, ConfigDict


def get_config() -> ConfigDict:
  """Returns an experiment with every legal field."""
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 1_000
  c.batch_size = 256  # Global: over all devices of all processes.
  # Embed so many examples at once; the loss still sees the whole batch.
  c.microbatch = config_dict.placeholder(int)
  c.loss = ConfigDict(
    {
      "name": "ring_sigmoid",  # Or softmax, without ring_; none: terms alone.
      "chunk_size": config_dict.placeholder(int),  # Rows of logits at once.
      "dtype": "float32",  # Of a ring's products; bfloat16 halves its traffic.
      # False negatives: pairs that match by chance, since a text or an image
      # stands twice in a batch. negative (not looked for), ignore or positive.
      "duplicates": "negative",
      "same": "text",  # What has to be equal for that: text, image or either.
    }
  )
  # NAME: {kind, ...} ...: what else is learned.
  c.terms = ConfigDict()
  # Devices along each axis; -1, once, takes the rest. Groups of fsdp share the
  # parameters and the optimizer's state; all of data and fsdp split the batch.
  c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "slices": 1})
  c.distributed = False  # Join other processes (jax.distributed.initialize).
  c.init = ConfigDict(
    {
      "path": config_dict.placeholder(str),  # Run, model folder, published.
      "state": "params",  # Or all: moments, step, data position of a run.
      "towers": "both",  # both, image or text; the rest starts at random.
      "positions": "big_vision",  # Or huggingface: at another resolution.
    }
  )
  c.model = _model()
  c.optimizer = ConfigDict(
    {
      "name": "adamw",  # adamw, adafactor or lion.
      "learning_rate": 1e-3,
      "schedule": "cosine",  # cosine, rsqrt, linear or constant.
      "warmup_steps": c.get_ref("total_steps") // 10,
      "cooldown_steps": 0,  # The last steps, to a rate of 0.
      "timescale": 10_000,  # steps, of rsqrt.
      "schedule_steps": config_dict.placeholder(int),  # None: the run's end.
      "stretch_from": 0,  # From this step on it takes `stretch` times as long.
      "stretch": 1.0,
      "b1": 0.9,
      "b2": 0.95,  # 0.999 diverges at large batches.
      "mu_dtype": "float32",  # bfloat16 halves the memory of the momentum.
      "weight_decay": 1e-4,  # As in the papers: not times the learning rate.
      "clip_norm": 1.0,  # Of all gradients together; 0: no clipping.
      "rules": (),  # (path regex, {freeze | learning_rate | weight_decay}).
    }
  )
  # Such as 0.9999: an average of the weights, evaluated and exported for them.
  c.ema = ConfigDict({"decay": config_dict.placeholder(float)})
  c.nonfinite = "stop"  # Or "skip": leave such steps out and count them.
  c.data = _data()
  c.evals = ConfigDict()  # NAME: a section of one of the functions below.
  c.log_every = 20  # steps
  c.checkpoint = ConfigDict({"every": 200, "keep": 2})  # steps; 2 at least.
  c.wandb = False  # Log to Weights & Biases, too.
  c.logging = ConfigDict(
    {
      # Of wandb; None: your own entity, the name of the run's folder.
      "project": "big_siglip",
      "entity": config_dict.placeholder(str),
      "name": config_dict.placeholder(str),
      "tags": (),
      "pictures": True,  # Draw evaluations (needs matplotlib).
    }
  )
  return c


def _model() -> ConfigDict:
  c = ConfigDict()
  c.image = ConfigDict(
    {
      "size": "B/16",  # mu, Ti, S, B, L, So400m or g-opt / pixels of a patch.
      "image_size": 224,  # pixels
      "pooling": "map",  # map, cls or gap; none: patches alone.
      "head": False,  # A projection to embed_dim.
      "drop_border": False,  # Allow pixels that no patch covers.
      "max_patches": config_dict.placeholder(int),  # NaFlex: docs/naflex.md.
      # Of red, green and blue in [0, 1]: taken off, and what is divided by.
      "mean": (0.5, 0.5, 0.5),
      "std": (0.5, 0.5, 0.5),
      # These override the named size.
      "patch_size": config_dict.placeholder(int),  # pixels
      "width": config_dict.placeholder(int),
      "depth": config_dict.placeholder(int),
      "mlp_dim": config_dict.placeholder(int),
      "num_heads": config_dict.placeholder(int),
    }
  )
  c.text = ConfigDict(
    {
      "size": "B",
      "vocab_size": 32_000,  # Embeddings; the tokenizer's pieces, at least.
      "length": 64,  # tokens
      "pooling": "last",  # last, map, mean or cls; none: tokens alone.
      "head": True,
      "width": config_dict.placeholder(int),
      "depth": config_dict.placeholder(int),
      "mlp_dim": config_dict.placeholder(int),
      "num_heads": config_dict.placeholder(int),
    }
  )
  c.embed_dim = config_dict.placeholder(int)  # None: the image tower's width.
  c.dtype = "bfloat16"  # Of the computation; parameters are float32.
  # auto (by the chip), xla, heads_first, cudnn, splash or short.
  c.attention = "auto"
  # What is computed again for the gradient: none (keep all activations), full
  # (keep block inputs alone: a third more FLOPs), or docs/performance.md.
  c.remat = "full"
  c.keep_blocks = 0  # The last of each tower keep all, whatever remat says.
  # Compile one block a tower, not all: compiles faster, runs slower.
  c.scan = True
  # Tokens of a device that go through a block at once; None: all.
  c.slice_tokens = config_dict.placeholder(int)
  c.lora = ConfigDict(  # Low-rank adaptation, rank 0: none; configs/lora.py.
    {"rank": 0, "alpha": 8.0, "targets": ".*/attention/.*/kernel"}
  )
  c.logit_scale_init = 10.0
  c.logit_bias_init = -10.0  # One pair in 22,026, by the prior.
  return c


def _data() -> ConfigDict:
  return ConfigDict(
    {
      "name": "folder",  # digits, scenes, tar, tfds ...: docs/data.md.
      "path": config_dict.placeholder(str),
      "split": "all",  # all, or train and test: 90 and 10 % by name.
      "mixture": {},  # Or several: NAME: {name, path, split, weight} ...
      "deduplicate": "none",  # Or by image or by name.
      "fields": (),  # More fields of the examples to take, such as "boxes".
      # Of boxes: their field and their texts'; yxyx (fractions), xyxy or xywh.
      "boxes": {"key": "boxes", "text_key": "box_texts", "format": "yxyx"},
      "image_key": config_dict.placeholder(str),  # None: found by its type.
      "text_keys": (),  # Or (field, weight) pairs; none: found by their type.
      "label_key": config_dict.placeholder(str),  # None: found by its type.
      "captions": "random",  # One of an image; or all: each an example.
      "templates": (),  # "a photo of {}" ...: one is drawn for a caption.
      "filters": {  # By what the data set says of an image; see docs/data.md.
        "min_size": config_dict.placeholder(int),  # pixels, shorter side
        "max_aspect": config_dict.placeholder(float),  # longer by shorter side
        "min_score": config_dict.placeholder(float),  # in the next field
        "score_key": config_dict.placeholder(str),
        "language": config_dict.placeholder(str),  # in the next field
        "language_key": "language",
      },
      "retry_seconds": 60.0,  # How long to try where storage does not answer.
      "decoder": "pillow",  # Or fast (docs/data-pipeline.md).
      "resize": "bilinear",  # Or bicubic; of four: docs/data-pipeline.md.
      "crop": "none",  # Squash; or center, shortest, longest.
      "crop_fraction": 1.0,  # Below 1: resize to more, and keep the middle.
      "fill": (0, 0, 0),  # Of what lies outside the image, with longest.
      "patch_lengths": config_dict.placeholder(tuple),  # In max_patches' place.
      "halve_from": config_dict.placeholder(int),  # Half of a batch so long.
      "crop_min_area": 1.0,  # 1: no random crop, as SigLIP does.
      "flip": False,  # Captions may say left or right.
      # bytes, or a SentencePiece model's path, or that of a tokenizer.json.
      "tokenizer": "c4_en/sentencepiece.model",
      "lowercase": True,
      "clean": "none",  # Of captions: none, html (&amp;) or canonical.
      "pad_id": 1,  # The end of a sentence, which "last" pools.
      "max_skipped": 0.1,  # Stop when a larger share cannot be used.
      "num_workers": 0,  # processes with a batch each; 0: threads alone.
      "num_threads": 2,
      "stall_seconds": 300.0,  # Stop when no batch comes for so long; 0: wait.
    }
  )


def take_from_weights(c: ConfigDict) -> None:
  """Leaves to the weights of `config.init.path` what only they know.

  These are both towers' sizes and the preprocessing. What is set after this, or
  on the command line, wins.
  """
  for tower in (c.model.image, c.model.text):
    tower.size = config_dict.placeholder(str)
    tower.pooling = config_dict.placeholder(str)
    tower.head = config_dict.placeholder(bool)
  c.model.image.image_size = config_dict.placeholder(int)
  c.model.image.drop_border = config_dict.placeholder(bool)
  c.model.image.mean = config_dict.placeholder(tuple)
  c.model.image.std = config_dict.placeholder(tuple)
  c.model.text.vocab_size = config_dict.placeholder(int)
  c.model.text.length = config_dict.placeholder(int)
  c.data.tokenizer = config_dict.placeholder(str)
  c.data.lowercase = config_dict.placeholder(bool)
  c.data.clean = config_dict.placeholder(str)
  c.data.pad_id = config_dict.placeholder(int)
  c.data.resize = config_dict.placeholder(str)
  c.data.crop = config_dict.placeholder(str)
  c.data.crop_fraction = config_dict.placeholder(float)
  c.data.fill = config_dict.placeholder(tuple)


def classification(**changes: Any) -> ConfigDict:
  """Returns a section of `config.evals`: zero-shot, by prompts."""
  own = {
    "templates": ("{}",),
    "templates_file": config_dict.placeholder(str),  # In place of templates.
    "canonicalize": False,  # Prompts in lowercase, without punctuation.
  }
  return evaluation("classification", own | labels(), changes)


def retrieval(**changes: Any) -> ConfigDict:
  """Returns one: recall from images to texts and back."""
  return evaluation("retrieval", captions(), changes)


def fewshot(**changes: Any) -> ConfigDict:
  """Returns one: a linear map to labels, from few images a class."""
  own = {
    "train_split": "train",
    "shots": (1, 5, 10, 25),  # Images a class.
    "seeds": 3,  # Draws of these.
    "l2": 2.0**10,  # As big_vision.
  }
  return evaluation("fewshot", own | labels(), changes)


def linear_probe(**changes: Any) -> ConfigDict:
  """Returns one: a linear map to labels, from all of a split."""
  own = {"train_split": "train", "penalties": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)}
  return evaluation("linear_probe", own | labels(), changes)


def calibration(**changes: Any) -> ConfigDict:
  """Returns one: whether the sigmoid's probabilities are right."""
  own = {"prior": config_dict.placeholder(float)}  # None: that of the data.
  return evaluation("calibration", own | captions(), changes)


def loss_health(**changes: Any) -> ConfigDict:
  """Returns one: the loss and its parts on held-out pairs."""
  own = {"loss_batch_size": 128}
  return evaluation("loss_health", own | captions(), changes)


def labels() -> dict[str, Any]:
  """Returns the fields of evaluations that need labels."""
  return {  # docs/evaluation.md tells what these files hold.
    "label_key": config_dict.placeholder(str),  # None: found by its type.
    "classes_file": config_dict.placeholder(str),  # None: the labels' names.
    "answers_file": config_dict.placeholder(str),  # None: the labels.
  }


def captions() -> dict[str, Any]:
  """Returns the fields of evaluations that need captions."""
  return {
    "captions_file": config_dict.placeholder(str),  # Or Karpathy's, XM3600's.
    "max_captions": config_dict.placeholder(int),  # Of an image; None: all.
    "language": config_dict.placeholder(str),  # Of XM3600; None: all.
  }


def evaluation(
  kind: str, own: dict[str, Any], changes: dict[str, Any]
) -> ConfigDict:
  """Returns a section of `config.evals`, with the fields that all have."""
  section = {
    "kind": kind,
    "data": "folder",  # As data.name.
    "path": config_dict.placeholder(str),
    "split": "test",
    "every": 200,  # steps; also after the last one.
    "batch_size": 64,  # Rows a device embeds at once.
    # Fields of the data; none: those of config.data, if it is as much a folder,
    # or tar and so on, or found by type.
    "image_key": config_dict.placeholder(str),
    "text_keys": (),
    **own,
  }
  return ConfigDict({**section, **changes})
