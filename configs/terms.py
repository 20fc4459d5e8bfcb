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
    # Examples of a device that are taken back at once, with all activations
    # kept. None: with the rest of the batch, as model.remat has it.
    "slice_examples": config_dict.placeholder(int),
  }
  return term("captioning", own, changes)


def distillation(**changes: Any) -> ConfigDict:
  """Returns one: the image tower teaches itself, by crops and masks.

  SigLIP 2 (arXiv:2502.14786, section 2.3): its `weight` is 0.25 for B, 0.5 for
  L, 1 for So400m and 0.5 for g-opt. Set `warmup_steps` to a twentieth of the
  steps that the term is trained for.
  """
  own = {
    # Weights of the halves; 0: left out.
    "local": 1.0,  # Of small crops, what the teacher says of a large one.
    "masked": 0.25,  # Of hidden patches, what the teacher says of them.
    "momentum": 0.99,  # Of the teacher; it stays the same.
    # Crops of the original image. The large one is as large as the model's.
    "global_area": (0.4, 1.0),  # Shares of the image's area.
    "local_count": 8,
    "local_size": 96,  # pixels
    "local_area": (0.05, 0.4),
    # global: cut small crops of the large one, on the device. Costs the host
    # nothing; shares of the area are then of the large crop.
    "local_from": "image",
    "flip": True,
    "resize": "bicubic",  # Or bilinear.
    # Shares of crops that are changed; 0: none.
    "jitter": 0.8,
    "jitter_strength": (0.4, 0.4, 0.2, 0.1),  # As torchvision's ColorJitter.
    "grey": 0.2,
    "global_blur": 1.0,
    "local_blur": 0.5,
    "masked_share": 0.5,  # Of the patches.
    "hidden": 2048,  # Units of the heads.
    "bottleneck": 256,
    "prototypes": 65_536,
    "student_temperature": 0.1,
    "teacher_temperature": (0.04, 0.07),  # At first, and after the warm-up.
    "warmup_steps": 0,
    "centre_momentum": 0.9,
    "frozen_steps": 1000,  # For so long prototypes stay as they were drawn.
    "chunk_size": 4096,  # Prototypes whose scores exist at once.
    "slice_examples": config_dict.placeholder(int),  # As of `captioning`.
  }
  return term("distillation", own, changes)


def term(kind: str, own: dict[str, Any], changes: dict[str, Any]) -> ConfigDict:
  """Returns a section of `config.terms`, with the fields that all have."""
  return ConfigDict({"kind": kind, "weight": 1.0, **own, **changes})
