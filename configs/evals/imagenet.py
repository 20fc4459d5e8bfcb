"""ImageNet and its variants, zero-shot, as the SigLIP papers report them.

big-siglip evaluate --checkpoint=models/b16 \
  --evals=configs/evals/imagenet.py --evals.imagenet.path=PATH ...

docs/evaluation.md says where the data comes from and what ReaL and ObjectNet
need beside it. One prompt is enough for a first look: set templates_file to a
file with "a photo of a {}.".
"""

from ml_collections import ConfigDict

from configs import base


def _section(**changes) -> ConfigDict:
  section = {
    "data": "tfds:imagenet2012",
    "split": "validation",
    "every": 1,
    "templates": (),
    "templates_file": "configs/prompts/clip_paper.txt",  # 81; clip_best: 8.
    "classes_file": "configs/classes/imagenet.json",
    "canonicalize": True,
  }
  return base.classification(**{**section, **changes})


def get_config() -> ConfigDict:
  """Returns the evaluations."""
  c = ConfigDict()
  c.imagenet = _section()
  c.v2 = _section(data="tfds:imagenet_v2/matched-frequency", split="test")
  c.a = _section(
    data="tfds:imagenet_a",
    split="test",
    classes_file="configs/classes/imagenet_a.json",
  )
  c.r = _section(
    data="tfds:imagenet_r",
    split="test",
    classes_file="configs/classes/imagenet_r.json",
  )
  c.real = _section(answers_file="real.json")
  return c
