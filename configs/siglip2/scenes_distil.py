"""SigLIP 2's second stage on drawn scenes.

big-siglip train --config=siglip2/scenes_distil --workdir=runs/scenes_distil \
  --config.init.path=runs/scenes_pretrain
"""

from ml_collections import ConfigDict

from configs import terms
from configs.siglip2 import scenes_pretrain


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = scenes_pretrain.get_config()
  c.init.path = "runs/scenes_pretrain"
  c.init.state = "all"
  # The last fifth of the schedule, as in the paper: its end, as a number.
  c.optimizer.schedule_steps = c.optimizer.schedule_steps
  c.total_steps = c.optimizer.get_ref("schedule_steps")
  steps = c.get_ref("total_steps")
  c.terms.teacher = terms.distillation(
    weight=0.25,
    local_count=2,
    local_size=32,
    local_from="global",  # So one thread has them all in time.
    # Scenes say where things are, and in which colour.
    flip=False,
    jitter=0.0,
    grey=0.0,
    hidden=128,
    bottleneck=64,
    prototypes=512,
    local_area=(0.1, 0.5),
    frozen_steps=0,
  )
  c.terms.teacher.warmup_steps = steps // 100
  return c
