"""Evaluations of patches, for `config.evals`: docs/dense.md tells of them.

from configs import base, dense
c.evals.masks = dense.segmentation(path="ade", classes_file="ade150.json")
"""

from typing import Any

from ml_collections import config_dict, ConfigDict

from configs import base


def segmentation(**changes: Any) -> ConfigDict:
  """Returns a section: masks by prompts alone, without training."""
  own = {
    "templates": ("{}",),
    "templates_file": config_dict.placeholder(str),  # In place of templates.
    "background": "background",  # The class without a prompt; None: all have.
    "threshold": 0.5,  # Least probability of a label; below it is background.
    "pool_mlp": True,  # Apply the MLP of the pool to each patch.
    "centered": False,  # Take the mean of an image's patches off each.
    **_masks(config_dict.placeholder(str)),
  }
  return base.evaluation("segmentation", own, changes)


def segmentation_probe(**changes: Any) -> ConfigDict:
  """Returns one: a linear map from frozen patches to classes."""
  own = {
    "train_split": "train",
    "shrinkage": 1e-3,  # Added to the variance of patches within a class.
    **_masks("last"),
  }
  return base.evaluation("segmentation_probe", own, changes)


def patch_retrieval(**changes: Any) -> ConfigDict:
  """Returns one: the classes of the most similar patches of other images."""
  own = {
    "train_split": "train",
    "memory": 20_480,  # Patches that are remembered.
    "neighbours": 30,  # That vote.
    **_masks("last"),
  }
  return base.evaluation("patch_retrieval", own, changes)


def correspondence(**changes: Any) -> ConfigDict:
  """Returns one: patches of a photo, found again in known crops of it."""
  own = {"min_area": 0.25, **_patches("last")}  # Share of a crop, at least.
  return base.evaluation("correspondence", own, changes)


def _masks(patches: Any) -> dict[str, Any]:
  return {
    "mask_key": "mask",  # The field that holds the masks.
    "classes_file": config_dict.placeholder(str),  # Names of a mask's values.
    "ignore": (),  # Values that are no class, beside 255; their names go, too.
    **_patches(patches),
  }


def _patches(kind: Any) -> dict[str, Any]:
  return {
    # last, text, value or share: docs/dense.md. None: text, or value where a
    # class token pools.
    "patches": kind,
    "layer": -1,  # -1: all blocks.
    # pixels that images are resized to; None: as the model was trained. With a
    # stride they are seen through windows of that size, else at once.
    "size": config_dict.placeholder(int),
    "stride": config_dict.placeholder(int),
    "baselines": True,  # Measure pixels and a random tower as well, once.
  }
