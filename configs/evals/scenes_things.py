"""Whether texts find the things of scenes by shape, colour and both.

big-siglip evaluate --checkpoint=runs/scenes_longer --evals=scenes_things

For towers that were trained with a decoder (docs/dense.md).
"""

from ml_collections import config_dict, ConfigDict

from configs import dense
from configs.evals import scenes_dense

_SPLIT = "test[:500]"


def get_config() -> ConfigDict:
  """Returns the evaluations."""
  seen = {"patches": "text", "layer": -1}
  c = ConfigDict(scenes_dense.zero_shot(_SPLIT, **seen))
  own = {
    **seen,
    "data": "scenes/100000",
    "batch_size": 100,
    "split": _SPLIT,
    "classes_file": "configs/classes/scenes_things.json",
    "templates": ("a tiny {}", "a big {}"),
  }
  c.things = dense.segmentation(**own)
  c.painted_things = dense.segmentation(
    background=config_dict.placeholder(str), ignore=(0,), **own
  )
  return c
