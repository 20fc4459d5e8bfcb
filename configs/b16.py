"""SigLIP B/16 at 224 pixels, 203 million parameters, from scratch.

big-siglip train --config=configs/b16.py --config.data.path=PAIRS \
  --workdir=runs/b16

PAIRS holds captions.csv (columns image, caption) and the images. The recipe is
that of arXiv:2303.15343. Its tokenizer, English with 32,000 pieces, is
gs://t5-data/vocabs/cc_en.32000/sentencepiece.model: copy it to c4_en/.
"""

from ml_collections import config_dict, ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = base.get_config()
  c.batch_size = 32_768
  # 40 billion examples, 1.22 million steps; another batch size keeps that.
  examples = config_dict.FieldReference(40_000_000_000)
  c.total_steps = examples // c.get_ref("batch_size")
  c.mesh.fsdp = 8  # Fewer than 8 devices: mesh.fsdp=1.

  # For speed, at 128 examples a chip of 16 GB (docs/performance.md). "full" and
  # True need a third of the memory and compile in a third of the time.
  c.model.remat = "none"
  c.model.scan = False

  c.optimizer.name = "adafactor"  # ScalingViT's.
  # 200 million examples, whatever the batch size.
  c.optimizer.warmup_steps = c.get_ref("total_steps") // 200
  c.optimizer.mu_dtype = "bfloat16"

  c.data.decoder = "fast"
  c.data.num_workers = 8
  c.data.num_threads = 16
  c.log_every = 50
  c.checkpoint.every = 1_000
  return c
