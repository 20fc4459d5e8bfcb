"""Retrieval on COCO, Flickr30k (Karpathy's splits) and XM3600.

big-siglip evaluate --checkpoint=models/b16 \
  --evals=configs/evals/retrieval.py --evals.coco.path=COCO \
  --evals.coco.captions_file=COCO/dataset_coco.json ...

docs/evaluation.md says where the files come from.
"""

from ml_collections import config_dict, ConfigDict

from configs import base


def _section(file: str, **changes) -> ConfigDict:
  section = {
    "path": ".",  # The folder of the images.
    "every": 1,
    "captions_file": file,
    "max_captions": 5,  # Some images of COCO have six or seven.
  }
  return base.retrieval(**{**section, **changes})


def get_config() -> ConfigDict:
  """Returns the evaluations."""
  c = ConfigDict()
  c.coco = _section("dataset_coco.json")
  c.flickr30k = _section("dataset_flickr30k.json")
  c.xm3600 = _section(
    "captions.jsonl", split="all", max_captions=config_dict.placeholder(int)
  )
  return c
