"""What is said of a loss that is no number any more."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from big_siglip.errors import RunStopped


def stopped(
  step: int,
  metrics: Mapping[str, Any],
  folder: epath.Path,
  saved: Sequence[int],
) -> RunStopped:
  """Returns what ends a run, with where it can go on.

  Args:
    step: the one whose loss or gradient is not finite.
    metrics: of this step.
    folder: of the run.
    saved: the steps of its checkpoints, oldest first.
  """
  good = folder / "checkpoints" / str(saved[-1]) if saved else "none"
  return RunStopped(
    f"step {step}: the loss is {metrics['loss']} and the gradient's norm "
    f"{metrics['grad_norm']}; last good checkpoint: {good} (a lower "
    "config.optimizer.learning_rate or clip_norm may help; "
    "config.nonfinite=skip leaves such steps out)"
  )
