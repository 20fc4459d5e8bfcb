"""Every kind of evaluation, on scanned digits: a tour that takes a minute.

big-siglip evaluate --checkpoint=runs/digits --output=runs/evaluated \
  --evals=configs/evals/digits.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the evaluations."""
  own = {"data": "digits", "batch_size": 90, "every": 1}
  templates = ("a photo of the digit {}.", "a handwritten {}.")
  c = ConfigDict()
  c.zeroshot = base.classification(**own, templates=templates)
  c.retrieval = base.retrieval(**own)
  c.fewshot = base.fewshot(**own)
  c.linear = base.linear_probe(**own)
  c.calibration = base.calibration(**own)
  c.balanced = base.calibration(**own, prior=0.5)
  c.health = base.loss_health(**own)
  return c
