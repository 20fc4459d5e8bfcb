"""SigLIP B/16 at 224 pixels, 203 million parameters, from scratch.

python main.py --config=configs/b16.py --config.data.path=PAIRS \
  --workdir=runs/b16

PAIRS holds captions.csv (columns image, caption) and the images. The recipe is
that of arXiv:2303.15343. Its tokenizer, English with 32,000 pieces, is
gs://t5-data/vocabs/cc_en.32000/sentencepiece.model: copy it to c4_en/.
"""

from ml_collections import config_dict, ConfigDict


def get_config() -> ConfigDict:
  """Returns the full experiment; every legal field appears here."""
  c = ConfigDict()
  c.seed = 0
  c.batch_size = 32_768  # Global: over all devices of all processes.
  # Embed so many examples at once; the loss still sees the whole batch.
  c.microbatch = config_dict.placeholder(int)
  # 40 billion examples, 1.22 million steps; another batch size keeps that.
  examples = config_dict.FieldReference(40_000_000_000)
  c.total_steps = examples // c.get_ref("batch_size")
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
  # Devices along each axis; -1, once, takes the rest. Groups of fsdp share the
  # parameters and the optimizer's state; all of data and fsdp split the batch.
  # Fewer than 8 devices: mesh.fsdp=1.
  c.mesh = ConfigDict({"data": -1, "fsdp": 8, "tensor": 1, "slices": 1})
  c.distributed = False  # Join other processes (jax.distributed.initialize).

  # Start from trained weights: a run, a model folder, or published ones.
  c.init = ConfigDict(
    {
      "path": config_dict.placeholder(str),
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
  # For speed, at 128 examples a chip of 16 GB (docs/performance.md). "full" and
  # True need a third of the memory and compile in a third of the time.
  c.model.remat = "none"  # Keep all activations.
  c.model.scan = False  # Compile every block.
  # Tokens of a device that go through a block at once; None: all.
  c.model.slice_tokens = config_dict.placeholder(int)
  c.model.lora = ConfigDict(  # Low-rank adaptation; see configs/lora.py.
    {"rank": 0, "alpha": 8.0, "targets": ".*/attention/.*/kernel"}
  )
  c.model.logit_scale_init = 10.0
  c.model.logit_bias_init = -10.0  # One pair in 22,026, by the prior.

  c.optimizer = ConfigDict(
    {
      "name": "adafactor",  # ScalingViT's; adamw or lion.
      "learning_rate": 1e-3,
      "schedule": "cosine",  # cosine, rsqrt, linear or constant.
      # 200 million examples, whatever the batch size.
      "warmup_steps": c.get_ref("total_steps") // 200,
      "cooldown_steps": 0,
      "timescale": 10_000,  # steps, of rsqrt.
      "b1": 0.9,
      "b2": 0.95,  # 0.999 diverges at large batches.
      "mu_dtype": "bfloat16",  # Halves the memory of the momentum.
      "weight_decay": 1e-4,  # As in the papers: not times the learning rate.
      "clip_norm": 1.0,
      "rules": (),  # (path regex, {freeze | learning_rate | weight_decay}).
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
      "decoder": "fast",  # Or pillow, exact (docs/data.md).
      "resize": "bilinear",  # bilinear, bicubic or big_vision.
      "crop_min_area": 1.0,  # 1: squash the whole image, as SigLIP does.
      "flip": False,  # Captions may say left or right.
      "tokenizer": "c4_en/sentencepiece.model",  # Or bytes.
      "lowercase": True,
      "clean": "none",  # Of captions: none, html (&amp;) or canonical.
      "pad_id": 1,  # The end of a sentence, which "last" pools.
      "max_skipped": 0.1,  # Stop when a larger share cannot be used.
      "num_workers": 8,  # processes with a batch each; 0: threads alone.
      "num_threads": 16,
      "stall_seconds": 300.0,  # Stop when no batch comes for so long; 0: wait.
    }
  )
  c.evals = ConfigDict()  # See configs/digits.py and configs/folder.py.
  c.log_every = 50  # steps
  c.checkpoint = ConfigDict({"every": 1_000, "keep": 2})
  c.wandb = False
  return c
