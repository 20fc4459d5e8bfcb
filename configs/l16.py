"""SigLIP L/16 at 256 pixels, 652 million parameters, from scratch.

big-siglip train --config=configs/l16.py --config.data.path=PAIRS \
  --workdir=runs/l16

The data, the recipe and the tokenizer are those of configs/b16.py.
"""

from ml_collections import ConfigDict

from configs import b16


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = b16.get_config()
  c.model.image.size = "L/16"
  c.model.image.image_size = 256
  c.model.text.size = "L"
  c.model.remat = "full"
  c.model.scan = True
  return c
