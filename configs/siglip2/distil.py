"""SigLIP 2, stage 2 of 2: self-distillation and masked prediction, too.

big-siglip train --config=siglip2/distil --workdir=runs/siglip2/distil \
  --config.data.path=PAIRS

It goes on from configs/siglip2/pretrain.py, 80 % of the schedule, to its end
(arXiv:2502.14786, section 2.3). For another size, set the weight as well:
`--config.terms.teacher.weight`, 0.25 for B, 0.5 for L and g-opt, 1 for So400m.
Patches of 14 pixels want `--config.terms.teacher.local_size=84`.
"""

from ml_collections import ConfigDict

from configs import terms
from configs.siglip2 import pretrain


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = pretrain.get_config()
  c.init.path = "runs/siglip2/pretrain"
  c.init.state = "all"
  steps = c.optimizer.get_ref("schedule_steps")
  c.total_steps = steps
  # By itself, 16 examples of a chip at a time (docs/performance.md).
  c.terms.teacher = terms.distillation(
    weight=0.25, slice_examples=16, chunk_size=8_192
  )
  # A twentieth of the stage, as the fifth of the schedule that it is.
  c.terms.teacher.warmup_steps = steps // 100
  return c
