"""Scenes with fine patches: 10 x 10 of 6 pixels, 10 minutes on two cores.

big-siglip train --config=scenes_dense --workdir=runs/scenes_dense
big-siglip evaluate --checkpoint=runs/scenes_dense --evals=scenes_dense

The second command tells what the patches know (docs/dense.md).
"""

from ml_collections import ConfigDict

from configs import scenes


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = scenes.get_config()
  c.total_steps = 1_500
  c.batch_size = 64
  c.model.image.patch_size = 6
  c.model.logit_bias_init = -4.1  # log(1 / 63): one pair in 64 matches.
  c.evals.test.every = 500
  return c
