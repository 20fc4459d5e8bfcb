"""SigLiT: a text tower trained to a locked, pretrained image tower.

big-siglip import --weights=google/siglip-base-patch16-224 \
  --output=models/b16
big-siglip train --config=configs/lit.py --config.init.path=models/b16 \
  --config.data.path=PHOTOS --workdir=runs/lit

arXiv:2303.15343, section 4.2, after LiT (arXiv:2111.07991). The frozen tower is
computed forward alone: it has neither gradient nor optimizer state. The new
text tower has the tokenizer of the weights, and their length of texts.
"""

from ml_collections import ConfigDict

from configs import finetune


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = finetune.get_config()
  c.init.towers = "image"
  c.model.text.size = "B"
  c.model.text.pooling = "last"
  c.model.text.head = True
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 1e-4
  c.optimizer.rules = (("image/.*", {"freeze": True}),)
  return c
