"""Trains, fine-tunes, evaluates and exports SigLIP models in JAX and Flax.

Example:
  import big_siglip

  model = big_siglip.load("models/b16")
  model.probabilities(["cat.jpg"], ["a cat", "a dog"])

  config = big_siglip.load_config("digits", total_steps=100)
  run = big_siglip.train(config, "runs/digits")
  big_siglip.evaluate(run.folder)

What is wrong with what was given is a `big_siglip.UserError`, one line.
"""

from collections.abc import Sequence
import os
from typing import Any, Literal, TYPE_CHECKING

from big_siglip.errors import UserError

if TYPE_CHECKING:
  import jax
  from ml_collections import ConfigDict

  from big_siglip.api import Trained
  from big_siglip.evaluators import Result
  from big_siglip.trained.inference import Model

__all__ = ["Model", "UserError", "evaluate", "load", "load_config", "train"]

__version__ = "0.1.0"

# What these functions need is imported late: JAX takes seconds to load.


if not TYPE_CHECKING:  # To a type checker every name would be one of ours.

  def __getattr__(name: str) -> Any:
    """Returns `Model`, for annotations and `help`."""
    if name != "Model":
      raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from big_siglip.trained.inference import Model

    return Model


def __dir__() -> list[str]:
  """Returns what is offered, without the modules behind it."""
  return [*__all__, "__version__"]


def load(
  path: str | os.PathLike[str],
  *,
  dtype: Literal["float32", "bfloat16"] = "float32",
  device: "str | jax.Device | Sequence[jax.Device] | None" = None,
  batch_size: int = 64,
  calibration: str = "kept",
  max_patches: int | None = None,
) -> "Model":
  """Returns a trained model, ready to embed images and texts.

  Example:
    model = big_siglip.load("models/b16")
    images = model.embed_images(["cat.jpg", "dog.jpg"])
    texts = model.embed_texts(["a cat", "a dog"])
    cosines = images @ texts.T

  Args:
    path: a run's folder or one of its checkpoints, or published weights: a
      folder or file of transformers, big_vision or open_clip, or the id of a
      repository on the Hugging Face hub.
    dtype: of the computation. What comes out is float32, and so are the
      parameters in memory.
    device: "cpu", "gpu" or "tpu": all of that kind, which share each batch;
      "gpu:1": one of them; or devices of JAX. None: all of JAX's default kind.
    batch_size: images or texts on the devices at once.
    calibration: "kept": scale and bias of the logits are those that
      `big-siglip calibrate` left beside the model, if it did; "none": those
      that were trained; or the path of a calibration.
    max_patches: of an image, for a model that keeps its shape (NaFlex); None:
      as the model says.

  Raises:
    UserError: no model lies there, there is no such device, or the calibration
      is not the model's own.
  """
  from big_siglip.trained import loading

  return loading.load(
    path,
    dtype=dtype,
    device=device,
    batch_size=batch_size,
    calibration=calibration,
    max_patches=max_patches,
  )


def load_config(name: str | os.PathLike[str], **changes: Any) -> "ConfigDict":
  """Returns a config, changed and checked.

  Example:
    config = big_siglip.load_config(
      "folder",
      total_steps=500,
      data=dict(path="PHOTOS"),
      optimizer=dict(learning_rate=3e-4),
    )
    config.batch_size = 32  # Checked once more when training starts.

  Args:
    name: what --config takes: the name of a config, or a file with a function
      `get_config`.
    **changes: of its fields; of a section, such as `data`, a dict of fields; {}
      empties it, such as `evals`.

  Raises:
    UserError: names every field that does not exist or has a value that is not
      allowed.
  """
  from big_siglip import api

  return api.load_config(name, changes)


def train(config: "ConfigDict", folder: str | os.PathLike[str]) -> "Trained":
  """Trains as `big-siglip train`, and resumes what lies in the folder already.

  Ctrl-C (in a notebook: interrupt the kernel) saves after the step that is
  under way, and returns; before the first step, and the second time, it is a
  KeyboardInterrupt. The same call again goes on.

  Example:
    config = big_siglip.load_config("digits", total_steps=200)
    run = big_siglip.train(config, "runs/digits")
    run.metrics["evals/test/accuracy"]
    model = big_siglip.load(run.folder)

  Args:
    config: of `load_config`.
    folder: of the run; made if it does not exist.

  Returns:
    The folder, the step, whether it is the last, and the last metrics.

  Raises:
    UserError: config, data, devices and folder do not fit each other.
    RunStopped: the loss is not finite, or too many examples are no good.
  """
  from big_siglip import api

  return api.train(config, folder)


def evaluate(
  model: "Model | str | os.PathLike[str]",
  # To a type checker `config.evals` may be anything, so anything must do here.
  evals: Any = None,
  *,
  progress: bool = False,
) -> "dict[str, Result]":
  """Returns what evaluations say of a model.

  Example:
    results = big_siglip.evaluate("runs/digits")
    results["test"].metrics["accuracy"]

    config = big_siglip.load_config("digits")
    big_siglip.evaluate("models/b16", config.evals, progress=True)

  Args:
    model: of `load`, or what it takes.
    evals: `config.evals` of any config, or a file that --evals takes; None:
      those of the run.
    progress: whether to say how far it is, on standard error.

  Returns:
    {name: result} with `metrics`, {name: number}, and `details`: curves and
    tables (docs/evaluation.md).

  Raises:
    UserError: no model lies there, or an evaluation does not fit its data.
  """
  from big_siglip import api

  return api.evaluate(model, evals, progress)
