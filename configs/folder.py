"""Any folder of images and captions: here for a few hundred photographs.

big-siglip train --config=configs/folder.py --config.data.path=PHOTOS \
  --workdir=runs/folder

PHOTOS holds images and captions.csv (columns image, caption; several rows an
image), texts beside the images, COCO's or Karpathy's JSON, a folder for each
class: docs/data-sources.md says all that is read.
A tenth of the images is held out; --config.data.split=all
--config.evals.photos.split=all takes all.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = base.get_config()
  c.batch_size = 64

  c.model.image.size = "Ti/16"
  c.model.image.image_size = 128
  c.model.image.patch_size = 16
  c.model.image.depth = 4
  c.model.text.size = "Ti"
  c.model.text.vocab_size = 259
  c.model.text.depth = 3
  for tower in (c.model.image, c.model.text):
    tower.width = 128
    tower.mlp_dim = 512
    tower.num_heads = 4
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.model.scan = False
  c.model.logit_bias_init = -4.0  # log(1 / 63): one pair in 64 matches.

  c.data.crop_min_area = 0.5
  c.data.tokenizer = "bytes"
  c.data.split = "train"  # A tenth of the images is held out.
  c.evals.photos = base.retrieval(
    # Of the training data, which do not follow it.
    data=c.data.get_ref("name").identity(),
    path=c.data.get_ref("path").identity(),
    split="test",
  )
  return c
