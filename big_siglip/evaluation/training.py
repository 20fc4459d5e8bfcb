"""The evaluations of a run as it trains."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import build, progress, training_data
from big_siglip.data.sources import Source
from big_siglip.errors import naming_evaluation, UserError
from big_siglip.evaluators import Evaluator, Result


@dataclasses.dataclass(frozen=True)
class Evaluations:
  """What a run measures of its model, and when.

  Attributes:
    config: of the run.
    evaluators: by name, as `config.evals` has them.
  """

  config: ConfigDict
  evaluators: Mapping[str, Evaluator]

  @classmethod
  def of(cls, config: ConfigDict, mesh: Mesh) -> "Evaluations":
    """Opens their data; see `build.evaluators`."""
    return cls(config, build.evaluators(config, mesh))

  def due(self, step: int, evaluated: int) -> list[str]:
    """Returns the names of the evaluations to be done after a step.

    Args:
      step: the last one taken.
      evaluated: after which all that was due is done.
    """
    # A random start has nothing to show; trained weights are a guard.
    if step == evaluated or step == 0 and not self.config.init.path:
      return []
    last, evals = step == self.config.total_steps, self.config.evals
    return [n for n in self.evaluators if last or step % evals[n].every == 0]

  def run(self, name: str, weights: Any, step: int) -> Result:
    """Returns what one evaluation says of the weights.

    Raises:
      UserError: config or data are wrong.
      RuntimeError: naming the evaluation and the step; anything else is.
    """
    try:
      with naming_evaluation(name):
        return self.evaluators[name](weights)
    except UserError:  # One line says what is wrong with config or data.
      raise
    except Exception as error:
      raise RuntimeError(f"evals.{name} failed at step {step}") from error

  def pictures(self, results: Mapping[str, Result]) -> dict[str, np.ndarray]:
    """Returns {"evals/NAME/PICTURE": uint8 [H, W, 3]}; for one process.

    They are left out where `config.logging.pictures` says so, or matplotlib is
    not installed; one that cannot be drawn ends no run.
    """
    if not (self.config.logging.pictures and results):
      return {}
    try:  # Imported late: it takes a second.
      with progress.waiting("loading matplotlib", after=4):
        from big_siglip.evaluation import pictures, samples
    except ModuleNotFoundError as error:
      if error.name != "matplotlib":
        raise
      return {}

    drawn: dict[str, np.ndarray] = {}
    with progress.waiting("drawing the evaluations", after=4):
      for name, result in results.items():
        opened = functools.partial(self._source, name)
        _draw(drawn, f"evals/{name}/chart", pictures.chart, name, result)
        _draw(drawn, f"evals/{name}/samples", samples.sheet, opened, result)
    return drawn

  def _source(self, name: str) -> Source:
    split = self.config.evals[name].split
    return training_data.evaluation_source(self.config, name, split)


def logged(results: Mapping[str, Result]) -> dict[str, float]:
  """Returns {"evals/NAME/METRIC": number}, as training logs them."""
  return {
    f"evals/{name}/{metric}": value
    for name, result in results.items()
    for metric, value in result.metrics.items()
  }


def _draw(
  drawn: dict[str, np.ndarray],
  name: str,
  draw: Callable[..., np.ndarray | None],
  *arguments: Any,
) -> None:
  try:
    picture = draw(*arguments)
  except Exception as error:  # A file that is gone, a font without a letter.
    logging.warning("%s is not drawn: %s", name, error)
    return
  if picture is not None:
    drawn[name] = picture
