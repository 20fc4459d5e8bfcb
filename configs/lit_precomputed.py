"""SigLiT on few chips: a text tower trained on images embedded once, before.

big-siglip import --weights=google/siglip-base-patch16-224 \
  --output=models/b16
big-siglip embed --checkpoint=models/b16 --images=PHOTOS --output=embedded
big-siglip train --config=configs/lit_precomputed.py --config.batch_size=256 \
  --config.total_steps=1000 --config.init.path=models/b16 \
  --config.data.path=embedded --workdir=runs/lit

arXiv:2303.15343, section 4.2 and table 1: with the steps and the batch below,
on four TPUv4 chips in a day, to embeddings of a B/8. PHOTOS has captions.csv,
as in configs/folder.py; its images are not read again. The image tower is
neither computed nor in memory; export and big_siglip.load join the text tower
with that of config.init.path: the weights that made the embeddings, which is
checked. init.towers=text or both starts from their text tower, too.
"""

from ml_collections import ConfigDict

from configs import lit


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = lit.get_config()
  c.total_steps = 65_000
  c.batch_size = 32_768
  c.model.text.size = "L"
  c.model.text.depth = 12  # Half of L's.

  c.optimizer.name = "lion"
  c.optimizer.learning_rate = 1e-4
  c.optimizer.b2 = 0.99
  c.optimizer.weight_decay = 1e-7
  c.optimizer.rules = ()

  c.data.name = "embeddings"  # A folder of big-siglip embed.
  c.evals.photos.every = 1_000
  c.log_every = 50
  c.checkpoint.every = 1_000
  return c
