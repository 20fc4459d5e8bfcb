"""SigLIP B/16 at 224 pixels on one GPU of 80 GB, from scratch.

big-siglip train --config=gpu --config.data.path=PAIRS --workdir=runs/gpu

The data, the tokenizer and what is not said here are those of configs/b16.py.
The loss sees all 4,096 pairs of a batch; the towers embed 512 at once, so the
memory does not grow with the batch. A GPU of 24 GB: config.model.remat=full and
config.model.scan=True.
docs/gpu.md says how it was chosen. It has not run on a GPU yet.
"""

from ml_collections import config_dict, ConfigDict

from configs import b16


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = b16.get_config()
  c.batch_size = 4_096
  c.microbatch = 512
  examples = config_dict.FieldReference(400_000_000)
  c.total_steps = examples // c.get_ref("batch_size")
  c.optimizer.warmup_steps = c.get_ref("total_steps") // 20
  c.mesh.fsdp = 1
  return c
