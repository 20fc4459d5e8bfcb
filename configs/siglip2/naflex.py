"""SigLIP 2 that keeps an image's shape: NaFlex, from 90 % of the schedule on.

big-siglip train --config=siglip2/naflex --workdir=runs/siglip2/naflex \
  --config.data.path=PAIRS --config.init.path=runs/siglip2/pretrain

It starts from the first stage, without self-distillation, that was trained up
to 90 % of the schedule: configs/siglip2/pretrain.py with
`--config.total_steps=1098632` for B's 1,220,703 steps. The last tenth takes
3.75 times as long, and each batch has images of 128, 256, 576, 784 or 1,024
patches (arXiv:2502.14786, section 2.4.2). The paper halves the batch at 1,024
for memory; slices of fewer examples hold it here, and change no gradient. As
in the paper it is with `--config.data.halve_from=1024`.
"""

from ml_collections import ConfigDict

from configs.siglip2 import pretrain

LENGTHS = (128, 256, 576, 784, 1024)
STRETCH = 3.75


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = pretrain.get_config()
  c.init.path = "runs/siglip2/pretrain"
  c.init.state = "all"
  steps = c.optimizer.get_ref("schedule_steps")
  start = steps * pretrain.NAFLEX // 100
  c.optimizer.stretch_from = start
  c.optimizer.stretch = STRETCH
  c.total_steps = start + (steps - start) * 15 // 4
  # Of the longest; of shorter ones a slice has more. On 256 chips these are as
  # many patches a slice as the first stage has in all; not compiled.
  c.microbatch = 8_192
  c.model.image.max_patches = 256  # Of evaluations, and of what is exported.
  c.data.patch_lengths = LENGTHS
  return c
