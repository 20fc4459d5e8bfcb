"""Drawn scenes and captions that say exactly what is in them: 15 CPU minutes.

big-siglip train --config=configs/scenes.py --workdir=runs/scenes
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = base.get_config()
  c.total_steps = 2_000
  c.batch_size = 128

  c.model.image.size = "Ti/16"
  c.model.image.image_size = 60
  c.model.image.patch_size = 12
  c.model.image.depth = 4
  c.model.text.size = "Ti"
  c.model.text.vocab_size = 36
  c.model.text.length = 12
  c.model.text.depth = 3
  for tower in (c.model.image, c.model.text):
    tower.width = 128
    tower.mlp_dim = 512
    tower.num_heads = 4
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.model.scan = False
  c.model.logit_bias_init = -5.0  # log(1 / 127): one pair in 128 matches.

  c.data.name = "scenes/100000"
  c.data.split = "train"
  # A SentencePiece model of the captions' 33 words, each one token.
  c.data.tokenizer = "configs/scenes.model"
  c.evals.test = base.retrieval(data="scenes/100000")
  return c
