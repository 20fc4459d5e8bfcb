"""Evaluations of a decoder, for `config.evals`: docs/evaluation.md.

from configs import base, written
c.evals.captions = written.caption(data="scenes")
"""

from typing import Any

from ml_collections import config_dict, ConfigDict

from configs import base


def caption(**changes: Any) -> ConfigDict:
  """Returns a section: captions that are written of held-out images."""
  return base.evaluation("caption", _search() | base.captions(), changes)


def grounding(**changes: Any) -> ConfigDict:
  """Returns one: boxes of texts, and texts of boxes."""
  own = {
    "box_key": "boxes",  # The fields that hold boxes,
    "box_text_key": "box_texts",  # and their texts.
    "box_format": "yxyx",  # As data.boxes.format.
    "max_boxes": config_dict.placeholder(int),  # Of an image; None: all.
  }
  return base.evaluation("grounding", own | _search(), changes)


def _search() -> dict[str, Any]:
  return {
    "beams": 1,  # Sequences that are kept; 1: the likeliest token each time.
    "max_length": config_dict.placeholder(int),  # tokens; None: as trained.
  }
