"""Scenes of mixed shapes, each in its own: NaFlex, four minutes on two cores.

big-siglip train --config=siglip2/scenes_naflex --workdir=runs/scenes_naflex

configs/scenes_wide.py squashes the same images to squares of as many patches
(docs/naflex.md).
"""

from ml_collections import ConfigDict

from configs import scenes_wide


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = scenes_wide.get_config()
  c.model.image.max_patches = 64
  return c
