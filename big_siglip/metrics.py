"""Where numbers go: metrics.jsonl, TensorBoard, wandb, and the terminal."""

from collections.abc import Mapping
import json
import math
from typing import Any

from etils import epath
import numpy as np

from big_siglip import progress
from big_siglip.run import events
from big_siglip.run.terminal import say
from big_siglip.run.wandb_run import WandbRun
from big_siglip.run.workdir import write_whole

# What a line on the terminal shows; the files hold everything.
_SHOWN = ("loss", "learning_rate", "examples_per_second")
# What sums up a run, beside its evaluations.
_SUMMARY = ("step", "loss", "learning_rate", "logit_scale", "logit_bias")


class MetricsWriter:
  """Writes the metrics of one run; only process 0 should hold one."""

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    start_step: int,
    evaluated_step: int,
    total_steps: int,
    config: Mapping[str, Any],
    use_wandb: bool = False,
  ):
    """Opens `workdir`/metrics.jsonl, `workdir`/tensorboard and the terminal.

    Lines past `start_step` are dropped: they are of steps that a killed run
    took after its last checkpoint and that will be taken again. So are lines of
    evaluations past `evaluated_step`.

    Raises:
      UserError: wandb is asked for, and not installed or does not start.
    """
    workdir = epath.Path(workdir)
    self._path = workdir / "metrics.jsonl"
    self._lines = _lines_up_to(self._path, start_step, evaluated_step)
    write_whole(self._path, "".join(self._lines))
    self._events = events.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=start_step + 1
    )
    self._wandb = WandbRun(workdir, config) if use_wandb else None
    self._total_steps = total_steps
    self._steps = progress.Progress(total_steps, "steps", done=start_step)

  def step_done(self) -> None:
    """Moves the bar by a step."""
    self._steps.add(1)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds one line: the metrics of `step`, Python floats and ints."""
    line = json.dumps({"step": step, **_finite_or_none(metrics)}) + "\n"
    self._append(line)
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)
    if self._wandb:
      self._wandb.log(step, metrics)
    self._show(step, metrics)

  def draw(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Adds pictures of `step`, uint8 [H, W, 3] each, for TensorBoard, wandb."""
    for name, picture in pictures.items():
      self._events.add_image(name, picture, step, dataformats="HWC")
    if self._wandb and pictures:
      self._wandb.draw(step, pictures)

  def _append(self, line: str) -> None:
    if "://" not in str(self._path):
      with self._path.open("a") as file:
        file.write(line)
    else:  # Object stores cannot append.
      self._lines.append(line)
      self._path.write_text("".join(self._lines))

  def _show(self, step, metrics) -> None:
    shown = {
      name: f"{value:.4g}"
      for name, value in metrics.items()
      if name in _SHOWN or name.startswith("evals/")
    }
    # Evaluations are worth a line that stays.
    if "loss" in metrics and self._steps.note(**shown):
      return
    text = "  ".join(f"{name} {value}" for name, value in shown.items())
    say(f"step {step}/{self._total_steps}  {text}")

  def close(self) -> None:
    """Flushes everything."""
    self._steps.close()
    self._events.close()
    if self._wandb:
      self._wandb.close()


def read_metrics(
  workdir: epath.PathLike, name: str = "metrics.jsonl"
) -> list[dict[str, float]]:
  """Returns the lines of `workdir`/metrics.jsonl, oldest first.

  Args:
    workdir: a run's folder.
    name: of another file of such lines.
  """
  path = epath.Path(workdir) / name
  lines = _lines_up_to(path, math.inf, math.inf)
  return [json.loads(line) for line in lines]


def _lines_up_to(
  path: epath.Path, step: float, evaluated_step: float
) -> list[str]:
  if not path.exists():
    return []
  kept = []
  for line in path.read_text().splitlines(keepends=True):
    if not line.endswith("\n"):
      continue  # A process was killed in the middle of this line.
    try:
      record = json.loads(line)
      evaluation = any(name.startswith("evals/") for name in record)
      if record["step"] <= (evaluated_step if evaluation else step):
        kept.append(line)
    except (json.JSONDecodeError, KeyError, TypeError):
      continue  # Nor will a reader know what to make of it.
  return kept


def _finite_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
  """JSON has no NaN: null stands for what is not finite."""
  return {k: v if np.isfinite(v) else None for k, v in metrics.items()}


def last_metrics(workdir: epath.PathLike) -> dict[str, float]:
  """Returns the last value of every metric that sums up a run."""
  last: dict[str, float] = {}
  for line in read_metrics(workdir):
    last |= {name: value for name, value in line.items() if value is not None}
  return {
    name: value
    for name, value in last.items()
    if name in _SUMMARY or name.startswith(("evals/", "skipped"))
  }
