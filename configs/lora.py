"""A published SigLIP, adapted to a folder of images and captions by LoRA.

python tools/import_weights.py --weights=google/siglip-base-patch16-224 \
  --output=models/b16
python main.py --config=configs/lora.py --config.data.path=PHOTOS \
  --workdir=runs/adapted
python tools/export_weights.py --checkpoint=runs/adapted --output=exported

arXiv:2106.09685: small matrices beside frozen kernels are trained, and added to
the kernels at export. Scale and bias of the logits are trained too.
"""

from ml_collections import config_dict, ConfigDict


def get_config() -> ConfigDict:
  """Returns the full experiment; every legal field appears here."""
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 1_000
  c.batch_size = 256  # Global: over all devices of all processes.
  # Embed so many examples at once; the loss still sees the whole batch.
  c.microbatch = config_dict.placeholder(int)
  c.loss = ConfigDict(
    {
      "name": "ring_sigmoid",  # ring_sigmoid, sigmoid, ring_softmax or softmax.
      "chunk_size": config_dict.placeholder(int),  # Rows of logits at once.
      "dtype": "float32",  # Of a ring's products; bfloat16 halves its traffic.
      # False negatives: pairs that match by chance, since a text or an image
      # stands twice in a batch. negative (not looked for), ignore or positive.
      "duplicates": "negative",
      "same": "text",  # What has to be equal for that: text, image or either.
    }
  )
  # Devices along each axis; -1, once, takes the rest.
  c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "slices": 1})
  c.distributed = False  # Join other processes (jax.distributed.initialize).

  # Start from trained weights: a run, a model folder, or published ones.
  c.init = ConfigDict(
    {
      "path": "models/b16",
      "towers": "both",  # both, image or text; the rest starts at random.
      "positions": "big_vision",  # Or huggingface: at another resolution.
    }
  )

  c.model = ConfigDict()
  c.model.image = ConfigDict(
    {
      "size": "B/16",
      "image_size": 224,  # pixels
      "pooling": "map",  # map, cls or gap.
      "head": False,  # A projection to embed_dim.
      "drop_border": False,  # Allow pixels that no patch covers.
      # These override the named size.
      "patch_size": config_dict.placeholder(int),  # pixels
      "width": config_dict.placeholder(int),
      "depth": config_dict.placeholder(int),
      "mlp_dim": config_dict.placeholder(int),
      "num_heads": config_dict.placeholder(int),
    }
  )
  c.model.text = ConfigDict(
    {
      "size": "B",
      "vocab_size": 32_000,
      "length": 64,  # tokens
      "pooling": "last",  # last, map, mean or cls.
      "head": True,
      "width": config_dict.placeholder(int),
      "depth": config_dict.placeholder(int),
      "mlp_dim": config_dict.placeholder(int),
      "num_heads": config_dict.placeholder(int),
    }
  )
  c.model.embed_dim = config_dict.placeholder(int)  # The image tower's width.
  c.model.dtype = "bfloat16"  # Of the computation; parameters are float32.
  c.model.attention = "auto"  # Or xla, jax, cudnn, splash: by the chip.
  c.model.remat = "full"  # Keep block inputs alone: a third more FLOPs.
  c.model.scan = True  # Compile one block a tower, not all.
  # Tokens of a device that go through a block at once; None: all.
  c.model.slice_tokens = config_dict.placeholder(int)
  c.model.lora = ConfigDict(
    {"rank": 8, "alpha": 8.0, "targets": ".*/attention/.*/kernel"}
  )
  c.model.logit_scale_init = 10.0
  c.model.logit_bias_init = -10.0

  c.optimizer = ConfigDict(
    {
      "name": "adamw",  # adamw, adafactor or lion.
      "learning_rate": 1e-4,
      "schedule": "cosine",  # cosine, rsqrt, linear or constant.
      "warmup_steps": c.get_ref("total_steps") // 10,
      "cooldown_steps": 0,
      "timescale": 10_000,  # steps, of rsqrt.
      "b1": 0.9,
      "b2": 0.95,
      "mu_dtype": "float32",
      "weight_decay": 0.0,
      "clip_norm": 1.0,
      # (path regex, {freeze | learning_rate | weight_decay}).
      "rules": (("(image|text)/.*", {"freeze": True}),),
    }
  )
  c.nonfinite = "stop"  # Or "skip": leave such steps out and count them.

  c.data = ConfigDict(
    {
      "name": "folder",  # digits, scenes, tar, tfds ...: docs/data.md.
      "path": config_dict.placeholder(str),
      "split": "all",  # all, or train and test: 90 and 10 % by name.
      # NAME: {name, path, split, weight} ...: several sources (docs/data.md)
      # instead of the one above.
      "mixture": {},
      "deduplicate": "none",  # Or by image or by name.
      "image_key": config_dict.placeholder(str),  # None: found by its type.
      # Fields with texts, or (field, weight) pairs; none: found by type.
      "text_keys": (),
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
      "decoder": "pillow",  # pillow, exact, or fast (docs/data.md).
      "resize": "bicubic",  # bilinear, bicubic or big_vision.
      "crop_min_area": 1.0,  # 1: squash the whole image, as SigLIP does.
      "flip": False,
      "tokenizer": "models/b16/tokenizer.model",  # That of the weights.
      "lowercase": True,
      "clean": "none",  # Of captions: none, html (&amp;) or canonical.
      "pad_id": 1,
      "max_skipped": 0.1,  # Stop when a larger share cannot be used.
      "num_workers": 0,  # processes; 0: threads alone.
      "num_threads": 2,
      "stall_seconds": 300.0,  # Stop when no batch comes for so long; 0: wait.
    }
  )
  c.evals = ConfigDict()
  c.evals.photos = ConfigDict(
    {
      "kind": "retrieval",
      "data": "folder",
      # Follow the training data, which do not follow them.
      "path": c.data.get_ref("path").identity(),
      "split": c.data.get_ref("split").identity(),
      "every": 200,  # steps; also after the last one.
      "batch_size": 64,  # Rows a device embeds at once.
      "captions_file": config_dict.placeholder(str),  # Or Karpathy's, XM3600's.
      "max_captions": config_dict.placeholder(int),  # Of an image; None: all.
      "language": config_dict.placeholder(str),  # Of XM3600; None: all.
    }
  )
  c.log_every = 20  # steps
  c.checkpoint = ConfigDict({"every": 200, "keep": 2})
  c.wandb = False
  return c
