"""The demo: scanned handwritten digits and captions, minutes on a laptop CPU.

big-siglip train --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = base.get_config()
  c.total_steps = 400
  c.batch_size = 128

  c.model.image.size = "Ti/16"
  c.model.image.image_size = 32
  c.model.image.patch_size = 8
  c.model.image.depth = 4
  c.model.text.size = "Ti"
  c.model.text.vocab_size = 259
  c.model.text.length = 40  # The longest caption has 35 bytes.
  c.model.text.depth = 2
  for tower in (c.model.image, c.model.text):
    tower.width = 128
    tower.mlp_dim = 512
    tower.num_heads = 4
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.model.scan = False
  c.model.logit_bias_init = -5.0  # log(1 / 127): one pair in 128 matches.

  c.data.name = "digits"
  c.data.split = "train"
  c.data.crop_min_area = 0.8
  c.data.tokenizer = "bytes"
  c.data.num_threads = 1
  c.evals.test = base.classification(
    data="digits",
    every=100,
    batch_size=90,
    templates=("a photo of the digit {}.", "a handwritten {}."),
    **base.captions(),  # Of kind = "retrieval".
  )
  return c
