"""SigLIP from a pretrained image tower that goes on learning.

big-siglip import --weights=google/siglip-base-patch16-224 \
  --output=models/b16
big-siglip train --config=configs/unlocked.py --config.init.path=models/b16 \
  --config.data.path=PHOTOS --workdir=runs/unlocked

arXiv:2303.15343, section 4.3: a tenth of the learning rate and no weight decay
on what is pretrained; with decay it falls back to what a random start reaches.
The text tower starts at random. The model is evaluated before the first step,
and finetuning.json says at the end what changed.
"""

from ml_collections import ConfigDict

from configs import lit


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = lit.get_config()
  rule = {"learning_rate": 0.1, "weight_decay": 0.0}
  c.optimizer.rules = (("image/.*", rule),)
  c.evals.photos.batch_size = 250
  return c
