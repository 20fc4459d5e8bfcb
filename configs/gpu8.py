"""SigLIP B/16 at 224 pixels on one host of 8 GPUs of 80 GB, from scratch.

big-siglip train --config=gpu8 --config.data.path=PAIRS --workdir=runs/gpu8

One process sees all 8 GPUs; nothing else is to be started. Each has the whole
model and an eighth of the batch of 16,384; texts travel round the ring. The
rest is that of configs/gpu.py.
"""

from ml_collections import config_dict, ConfigDict

from configs import gpu


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = gpu.get_config()
  c.batch_size = 16_384
  c.microbatch = 8 * 512
  examples = config_dict.FieldReference(4_000_000_000)
  c.total_steps = examples // c.get_ref("batch_size")
  c.optimizer.warmup_steps = c.get_ref("total_steps") // 20
  c.mesh.data = 8
  return c
