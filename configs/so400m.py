"""SigLIP So400m/14 at 224 pixels, 877 million parameters, from scratch.

big-siglip train --config=configs/so400m.py --config.data.path=PAIRS \
  --workdir=runs/so400m

The data, the recipe and the tokenizer are those of configs/b16.py.
"""

from ml_collections import ConfigDict

from configs import b16


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = b16.get_config()
  c.model.image.size = "So400m/14"
  c.model.text.size = "So400m"
  c.model.remat = "full"
  c.model.scan = True
  c.model.slice_tokens = 8_192
  return c
