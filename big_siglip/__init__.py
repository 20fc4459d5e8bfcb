"""Trains, fine-tunes, evaluates and exports SigLIP models in JAX and Flax."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from big_siglip.trained.inference import Model


__version__ = "0.1.0"


def load(path: str, *, calibration: str = "kept") -> "Model":
  """Returns a trained model, ready to embed images and texts.

  Args:
    path: a run's folder or one of its checkpoints, or published weights: a
      folder or file of transformers, big_vision or open_clip, or the id of a
      repository on the Hugging Face hub.
    calibration: "kept": scale and bias of the logits are those that
      tools/calibrate.py left beside the model, if it did; "none": those that
      were trained; or the path of a calibration.

  Raises:
    UserError: no model lies there, or the calibration is not its own.
  """
  from big_siglip.trained import inference  # Imported late: it loads JAX.

  return inference.load(path, calibration=calibration)
