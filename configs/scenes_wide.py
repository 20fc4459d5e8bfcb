"""Scenes of mixed shapes, squashed to squares: four minutes on two cores.

big-siglip train --config=scenes_wide --workdir=runs/scenes_wide

Four in five images are 7:1 or 1:7. configs/siglip2/scenes_naflex.py is the same
model, but of images in their own shape (docs/naflex.md).
"""

from ml_collections import ConfigDict

from configs import base, scenes

_DATA = "scenes_wide/20000"


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = scenes.get_config()
  c.total_steps = 600
  c.batch_size = 64
  c.model.image.image_size = 64
  c.model.image.patch_size = 8
  c.model.logit_bias_init = -4.1  # log(1 / 63): one pair in 64 matches.
  c.data.name = _DATA
  splits = {"test": "test", "long": "test[:800]", "square": "test[800:]"}
  for name, split in splits.items():
    c.evals[name] = base.retrieval(data=_DATA, split=split, every=300)
  return c
