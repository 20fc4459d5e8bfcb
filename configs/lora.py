"""A published SigLIP, adapted to a folder of images and captions by LoRA.

big-siglip import --weights=google/siglip-base-patch16-224 \
  --output=models/b16
big-siglip train --config=configs/lora.py --config.init.path=models/b16 \
  --config.data.path=PHOTOS --workdir=runs/adapted
big-siglip export --checkpoint=runs/adapted --output=exported

arXiv:2106.09685: small matrices beside frozen kernels are trained, and added to
the kernels at export. Scale and bias of the logits are trained too.
"""

from ml_collections import ConfigDict

from configs import finetune


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = finetune.get_config()
  c.model.lora.rank = 8
  c.optimizer.learning_rate = 1e-4
  c.optimizer.rules = (("(image|text)/.*", {"freeze": True}),)
  return c
