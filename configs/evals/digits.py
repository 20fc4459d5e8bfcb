"""Every kind of evaluation, on scanned digits: a tour that takes a minute.

python tools/evaluate.py --checkpoint=runs/digits --output=runs/evaluated \
  --evals=configs/evals/digits.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the evaluations."""
  templates = ("a photo of the digit {}.", "a handwritten {}.")
  c = ConfigDict()
  c.zeroshot = base.classification(templates=templates)
  c.retrieval = base.retrieval()
  c.fewshot = base.fewshot()
  c.linear = base.linear_probe()
  c.calibration = base.calibration()
  c.balanced = base.calibration(prior=0.5)
  c.health = base.loss_health()
  for section in c.values():
    section.update(data="digits", batch_size=90, every=1)
  return c
