"""A published SigLIP, fine-tuned on a folder of images and captions.

big-siglip import --weights=google/siglip-base-patch16-224 \
  --output=models/b16
big-siglip train --config=configs/finetune.py --config.init.path=models/b16 \
  --config.data.path=PHOTOS --workdir=runs/finetuned

Sizes, tokenizer and preprocessing are those of the weights, whichever they are.
Small steps and no weight decay on what is pretrained, as arXiv:2303.15343,
section 4.3, found: with decay it falls back to what a random start reaches. The
weights are evaluated before the first step, and finetuning.json says at the end
what changed. A tenth of the images is held out for that; other formats may have
other splits: --config.data.split=all --config.evals.photos.path=OTHERS.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = base.get_config()
  c.init.path = "models/b16"
  base.take_from_weights(c)
  c.optimizer.learning_rate = 1e-5
  c.optimizer.weight_decay = 0.0
  c.data.split = "train"  # A tenth of the images is held out.
  c.evals.photos = base.retrieval(
    # Of the training data, which do not follow it.
    data=c.data.get_ref("name").identity(),
    path=c.data.get_ref("path").identity(),
    split="test",
  )
  return c
