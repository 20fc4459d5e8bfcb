"""Further terms of the loss, for `config.terms`: docs/captioning.md.

from configs import base, terms
c.terms.words = terms.captioning(parallel=0.0)
"""

from typing import Any

from ml_collections import config_dict, ConfigDict


def captioning(**changes: Any) -> ConfigDict:
  """Returns a section: a decoder writes captions and boxes (LocCa)."""
  own = {
    # Weights of the tasks; 0: it is not asked. The last two need boxes.
    "caption": 1.0,  # A caption of the image.
    "aref": 0.0,  # The box of a text.
    "gcap": 0.0,  # The text of a box.
    "parallel": 0.5,  # Share of captions whose words are all guessed at once.
    "depth": config_dict.placeholder(int),  # None: half of the text tower's.
    "length": config_dict.placeholder(int),  # tokens; None: of model.text.
    "tie_embedding": False,  # Take the table of tokens for the logits too.
    "boxes": "text",  # Or tokens: ids of their own; so are the prefixes then.
    "bins": 501,  # Values of a coordinate: 0 to 500.
    "prefixes": ("cap:", "aref:", "gcap:"),  # Of the tasks, as text.
    "chunk_size": 1024,  # Tokens of a device whose logits exist at once.
  }
  return term("captioning", own, changes)


def term(kind: str, own: dict[str, Any], changes: dict[str, Any]) -> ConfigDict:
  """Returns a section of `config.terms`, with the fields that all have."""
  return ConfigDict({"kind": kind, "weight": 1.0, **own, **changes})
