"""Scenes of mixed shapes, each in its own: NaFlex, a minute on two cores.

big-siglip train --config=siglip2/scenes_naflex --workdir=runs/scenes_naflex

It goes on from a run that has seen squares, as the paper's stage does.
configs/scenes_wide.py squashes the same images to squares of as many patches
(docs/naflex.md).
"""

from ml_collections import ConfigDict

from configs import scenes_wide


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = scenes_wide.get_config()
  c.model.image.max_patches = 25
  return c
