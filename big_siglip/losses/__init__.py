"""Losses over embeddings and tokens; they never see a model."""

from big_siglip.losses.duplicates import image_id, text_id
from big_siglip.losses.prototypes import (
  prototype_cross_entropy,
  PrototypeLosses,
  Prototypes,
  summed_distribution,
)
from big_siglip.losses.ring import ring_sigmoid_loss
from big_siglip.losses.ring_softmax import ring_softmax_loss
from big_siglip.losses.sigmoid import sigmoid_loss
from big_siglip.losses.softmax import softmax_loss
from big_siglip.losses.statistics import LogitStatistics
from big_siglip.losses.token_cross_entropy import token_cross_entropy

__all__ = [
  "LogitStatistics",
  "PrototypeLosses",
  "Prototypes",
  "image_id",
  "prototype_cross_entropy",
  "ring_sigmoid_loss",
  "ring_softmax_loss",
  "sigmoid_loss",
  "softmax_loss",
  "summed_distribution",
  "text_id",
  "token_cross_entropy",
]
