"""Labelled images of your own, classified by the names of their labels.

big-siglip evaluate --checkpoint=models/b16 --evals=labels \
  --evals.labels.path=PHOTOS --evals.labels.templates="('a photo of {}.',)" \
  --rows=rows.csv

PHOTOS is a folder for each class, a table with labels, shards. The rows say of
each image its label, what was predicted, and how likely. docs/labels.md tells
more.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the evaluation."""
  evals = ConfigDict()
  evals.labels = base.classification(
    split="all", templates=("a photo of {}.",), batch_size=64
  )
  return evals
