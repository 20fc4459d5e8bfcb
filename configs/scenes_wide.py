"""Scenes of mixed shapes, squashed to squares: a minute on two cores.

big-siglip train --config=scenes_wide --workdir=runs/scenes_wide

Four in five images are 7:1 or 1:7. It goes on from a run that has seen squares.
configs/siglip2/scenes_naflex.py is the same model, but of images in their own
shape (docs/naflex.md).
"""

from ml_collections import ConfigDict

from configs import base, scenes

_DATA = "scenes_wide/20000"


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = scenes.get_config()
  c.init.path = "runs/scenes"  # Of configs/scenes.py.
  c.total_steps = 300
  c.batch_size = 64
  c.optimizer.learning_rate = 3e-4
  c.data.name = _DATA
  splits = {"test": "test", "long": "test[:800]", "square": "test[800:]"}
  for name, split in splits.items():
    c.evals[name] = base.retrieval(data=_DATA, split=split, every=100)
  return c
