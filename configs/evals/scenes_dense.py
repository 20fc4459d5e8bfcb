"""What patches know of scenes: masks, with and without labels, and crops.

big-siglip evaluate --checkpoint=runs/scenes_dense --evals=scenes_dense
"""

from typing import Any

from ml_collections import config_dict, ConfigDict

from configs import dense

_SIZES = "tiny", "big"
_COLOURS = "red", "green", "blue", "yellow", "white", "pink"
_SHAPES = "circle", "square", "triangle", "star", "cross"
# As captions speak: a size, a colour and a shape.
TEMPLATES = {
  "shapes": tuple(f"a {s} {c} {{}}" for s in _SIZES for c in _COLOURS),
  "colours": tuple(f"a {s} {{}} {x}" for s in _SIZES for x in _SHAPES),
}
_OWN = {"data": "scenes/100000", "batch_size": 100}
_TEST = "test[:500]"
# Of the patches of configs/scenes_dense.py those that texts find best, in
# scenes of the training split (`studies.patches`).
_SEEN = {"patches": "value", "layer": -3}


def zero_shot(
  split: str,
  asked: dict[str, tuple[str, ...]] = TEMPLATES,
  **changes: Any,
) -> dict[str, ConfigDict]:
  """Returns evaluations without training, with and without a background.

  Args:
    split: of scenes.
    asked: {what: its templates}; configs/classes has a file of each.
    **changes: fields of all of them.
  """
  made = {}
  for name, templates in asked.items():
    own = {
      **_OWN,
      "split": split,
      "classes_file": f"configs/classes/scenes_{name}.json",
      "templates": templates,
      **_SEEN,
      **changes,
    }
    made[name] = dense.segmentation(**own)
    # The pixels of things alone: which is it?
    made[f"painted_{name}"] = dense.segmentation(
      background=config_dict.placeholder(str), ignore=(0,), **own
    )
  return made


def get_config() -> ConfigDict:
  """Returns the evaluations."""
  c = ConfigDict(zero_shot(_TEST))
  for name in TEMPLATES:
    learned = {
      **_OWN,
      "split": _TEST,
      "train_split": "train[:2000]",
      "classes_file": f"configs/classes/scenes_{name}.json",
    }
    c[f"probe_{name}"] = dense.segmentation_probe(**learned)
    c[f"nearest_{name}"] = dense.patch_retrieval(**learned)
  c.crops = dense.correspondence(**_OWN, split=_TEST)
  return c
