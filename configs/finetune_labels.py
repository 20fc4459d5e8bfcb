"""A published SigLIP, fine-tuned on labelled images: a classifier of your own.

big-siglip import --weights=google/siglip-base-patch16-224 \
  --output=models/b16
big-siglip train --config=configs/finetune_labels.py \
  --config.init.path=models/b16 --config.data.path=BIRDS --workdir=runs/birds
big-siglip evaluate --checkpoint=runs/birds --rows=birds.csv

BIRDS is a folder for each class, a table with labels, shards. A label becomes a
sentence, which the text tower reads, and the loss stays the sigmoid of the
pretraining, as arXiv:2212.00638 found best for such models: no head has to be
learnt from nothing, and what comes out is a SigLIP still, for other labels and
for search, in every format. Images of a label in one batch all belong to its
sentence (loss.duplicates=positive), which is therefore one alone. A tenth of
the images is held out, unless folders are called train and test.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = base.get_config()
  c.init.path = "models/b16"
  base.take_from_weights(c)
  c.batch_size = 64
  c.total_steps = 300
  c.optimizer.warmup_steps = c.get_ref("total_steps") // 10
  c.optimizer.learning_rate = 1e-5
  c.optimizer.weight_decay = 0.0
  c.data.split = "train"
  c.data.templates = ("a photo of {}.",)
  c.data.crop_min_area = 0.8
  c.loss.duplicates = "positive"
  c.evals.labels = base.classification(
    # Of the training data, which do not follow it.
    data=c.data.get_ref("name").identity(),
    path=c.data.get_ref("path").identity(),
    split="test",
    templates=c.data.get_ref("templates").identity(),
    every=c.get_ref("total_steps") // 3,
  )
  return c
