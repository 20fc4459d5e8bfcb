"""Trains, fine-tunes, evaluates and exports SigLIP models in JAX and Flax."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from big_siglip.trained.inference import Model


__version__ = "0.1.0"


def load(path: str) -> "Model":
  """Returns a trained model, ready to embed images and texts.

  Args:
    path: a run's folder or one of its checkpoints, or published weights: a
      folder or file of transformers, big_vision or open_clip, or the id of a
      repository on the Hugging Face hub.

  Raises:
    UserError: no model lies there.
  """
  from big_siglip.trained import inference  # Imported late: it loads JAX.

  return inference.load(path)
