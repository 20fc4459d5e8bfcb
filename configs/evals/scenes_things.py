"""Whether texts find the things of scenes by shape, colour and both.

big-siglip evaluate --checkpoint=runs/scenes_longer --evals=scenes_things

For towers that were trained with a decoder (docs/dense.md).
"""

from ml_collections import ConfigDict

from configs.evals import scenes_dense

_ASKED = {**scenes_dense.TEMPLATES, "things": ("a tiny {}", "a big {}")}


def get_config() -> ConfigDict:
  """Returns the evaluations."""
  seen = {"patches": "text", "layer": -1}
  return ConfigDict(scenes_dense.zero_shot("test[:500]", _ASKED, **seen))
