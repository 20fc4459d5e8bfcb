"""Scenes with fine patches, and what these know: masks, crops, retrieval.

big-siglip train --config=configs/scenes_dense.py --workdir=runs/scenes_dense
"""

from ml_collections import ConfigDict

from configs import dense, scenes

_SIZES = "tiny", "big"
_COLOURS = "red", "green", "blue", "yellow", "white", "pink"
_SHAPES = "circle", "square", "triangle", "star", "cross"
# As captions speak: a size, a colour and a shape.
TEMPLATES = {
  "shapes": tuple(f"a {s} {c} {{}}" for s in _SIZES for c in _COLOURS),
  "colours": tuple(f"a {s} {{}} {x}" for s in _SIZES for x in _SHAPES),
  "objects": tuple(f"a {s} {{}}" for s in _SIZES),
}


def get_config() -> ConfigDict:
  """Returns `scenes` with 10 x 10 patches of 6 pixels, and dense evals."""
  c = scenes.get_config()
  c.total_steps = 1_500
  c.batch_size = 64
  c.model.image.patch_size = 6
  c.model.logit_bias_init = -4.1  # log(1 / 63): one pair in 64 matches.
  c.evals.test.every = 500
  # Once: the rest takes longer than the steps between.
  common = dict(data=c.evals.test.data, every=c.get_ref("total_steps"))
  for name, templates in TEMPLATES.items():
    c.evals[name] = dense.segmentation(
      **common,
      classes_file=f"configs/classes/scenes_{name}.json",
      templates=templates,
    )
  learned = dict(
    common,
    train_split="train[:4000]",
    classes_file="configs/classes/scenes_shapes.json",
  )
  c.evals.probe = dense.segmentation_probe(**learned)
  c.evals.patches = dense.patch_retrieval(**learned)
  c.evals.crops = dense.correspondence(**common)
  return c
