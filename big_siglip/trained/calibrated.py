"""A calibration that is kept: scale and bias of the logits, fitted anew.

It lies in a file of its own beside the weights, which it does not touch:
`calibration.json` in the folder of a run or model, `m.calibration.json` beside
`m.npz`. It says which scale and bias it was fitted in place of, so that other
weights in that place, or another step of the run, do not take it for theirs.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import pathlib
from typing import Any

from absl import logging
from etils import epath
import jax

from big_siglip.errors import UserError
from big_siglip.run import workdir
from big_siglip.trained import places

NAME = "calibration.json"
# What `load` takes beside the path of a file.
KEPT, NONE = "kept", "none"


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Scale and bias, and where they come from.

  Attributes:
    scale: the multiplier of the logits, no logarithm.
    bias: what is added to them.
    trained: the parameters "logit_scale" (a logarithm) and "logit_bias" of the
      model, to the last bit.
    data: what it was fitted on, in words.
    images: how many images it was fitted on.
    texts: how many labels, or captions.
    prior: the share of right pairs that its probabilities are for.
    templates: around the labels; empty where it was fitted on captions.
    measured: {"trained" or "calibrated": {"ece", "brier", "log_loss"}}, on
      images that the fit had not seen.
  """

  scale: float
  bias: float
  trained: Mapping[str, float]
  data: str
  images: int
  texts: int
  prior: float
  templates: Sequence[str]
  measured: Mapping[str, Mapping[str, float]]

  def __post_init__(self):
    """Raises a ValueError if it could not be used."""
    numbers = (self.scale, self.bias, *map(self.trained.get, _PARAMETERS))
    if not all(map(_is_finite, numbers)) or self.scale <= 0:
      raise ValueError("scale, bias and trained must be finite, scale above 0")

  def __str__(self) -> str:
    """Returns a line that says what it was fitted on, and to what."""
    scale, bias = (self.trained[name] for name in _PARAMETERS)
    what = "labels" if self.templates else "captions"
    return (
      f"calibrated on {self.data} ({self.images:,} images, {self.texts:,} "
      f"{what}): scale {self.scale:.4g}, bias {self.bias:.4g}; trained were "
      f"{math.exp(scale):.4g}, {bias:.4g}"
    )


_PARAMETERS = ("logit_scale", "logit_bias")


def trained_numbers(params: Any) -> dict[str, float]:
  """Returns `Calibration.trained` of a model's parameters."""
  return {name: float(jax.device_get(params[name])) for name in _PARAMETERS}


def load(path: str, params: Any, given: str = KEPT) -> Calibration | None:
  """Returns the calibration of a model.

  Args:
    path: of the model, as `saved.load` takes it.
    params: its parameters.
    given: "kept": that which lies beside the model, if one does, and is of
      these parameters; "none": none; or the path of one.

  Raises:
    UserError: the file that is named is of another model, or one is damaged.
  """
  if given == NONE:
    return None
  named = given != KEPT
  file = epath.Path(given).expanduser() if named else file_of(path)
  if named and not file.exists():
    raise UserError(
      f"calibration={given}: must be {KEPT}, {NONE} or a file of "
      "big-siglip calibrate"
    )
  if file is None or not file.exists():
    return None
  found = read(file)
  trained = trained_numbers(params) if "logit_scale" in params else {}
  if found.trained == trained:
    return found
  problem = f"{file}: is of other parameters than {path}"
  if named:
    raise UserError(problem)
  logging.warning("%s, and is not used", problem)
  return None


def file_of(path: str) -> epath.Path | None:
  """Returns where a model's calibration lies, or would; None: of the hub."""
  if found := places.find_run(path):
    return found[0] / NAME
  place = pathlib.Path(path).expanduser()
  if place.is_dir():
    return epath.Path(place / NAME)
  return epath.Path(place.with_suffix(f".{NAME}")) if place.is_file() else None


def read(file: epath.Path) -> Calibration:
  """Returns what `write` wrote.

  Raises:
    UserError: it cannot be read, or is damaged.
  """
  try:
    return Calibration(**json.loads(file.read_text()))
  except OSError as error:
    raise UserError(f"{file}: {error.strerror or error}") from error
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(f"{file}: is no calibration ({error})") from error


def write(file: epath.Path, calibration: Calibration) -> None:
  """Writes a calibration, whole or not at all, in place of another one.

  Raises:
    UserError: it cannot be written.
  """
  text = json.dumps(dataclasses.asdict(calibration), indent=2) + "\n"
  try:
    workdir.write_whole(file, text)
  except OSError as error:
    reason = error.strerror or error
    raise UserError(f"{file}: cannot be written ({reason})") from error


def baked(params: Any, calibration: Calibration) -> Any:
  """Returns parameters with a calibration's scale and bias as their own."""
  made = (math.log(calibration.scale), calibration.bias)
  return {
    **params,
    **{
      name: jax.numpy.full_like(params[name], value)
      for name, value in zip(_PARAMETERS, made, strict=True)
    },
  }


def _is_finite(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)
