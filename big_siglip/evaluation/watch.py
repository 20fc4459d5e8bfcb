"""Evaluating a run's checkpoints while it trains, in a process of its own.

Reads the run's folder and adds to it: `evaluations.jsonl` (a line a checkpoint,
as in metrics.jsonl, with the number of images and intervals),
`evaluations/STEP.json` (with the details behind the numbers) and
`tensorboard/evaluations`. Nothing that the trainer writes is touched, so that
the two need not know of each other.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
import math
import time
from typing import Any

from absl import logging
from etils import epath
import filelock
from jax.sharding import Mesh
from ml_collections import ConfigDict
import orbax.checkpoint as ocp

from big_siglip.errors import UserError
from big_siglip.evaluation import results
from big_siglip.evaluators import Evaluator, Result
from big_siglip.metrics import read_metrics
from big_siglip.run import events
from big_siglip.run.workdir import saved_steps, write_whole
from big_siglip.trained import decoders, saved

NAME = "evaluations.jsonl"
_TRIES = 3  # To read a checkpoint that is there and cannot be read.


def wait_for_config(run: epath.Path, poll_seconds: float) -> ConfigDict:
  """Returns the config of a run, which may not have begun yet."""
  if not (run / "config.json").exists():
    logging.warning("waiting for %s to begin", run)
  while not (run / "config.json").exists():
    time.sleep(poll_seconds)
  return saved.load_config(run)


class Watcher(contextlib.AbstractContextManager):
  """Evaluates every checkpoint of one run once, oldest first."""

  def __init__(
    self,
    run: epath.Path,
    config: ConfigDict,
    evaluators: Mapping[str, Evaluator],
    mesh: Mesh,
  ):
    """Takes over from an earlier watcher of the run, if there was one.

    Args:
      run: the run's folder.
      config: with the evaluations; `total_steps` says when the run is done.
      evaluators: `build.evaluators` of that config.
      mesh: the devices to evaluate on.

    Raises:
      UserError: another process watches the run.
    """
    self._run = run
    self._config = config
    self._evaluators = evaluators
    self._mesh = mesh
    self._lock = self._claim()
    lines = read_metrics(run, NAME)
    # A watcher that was killed may have left half a line.
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_whole(run / NAME, text)
    self._done: dict[int, set[str]] = {}
    for line in lines:
      self._remember(line["step"], line)
    self._failed: dict[int, int] = {}
    folder = str(run / "tensorboard" / "evaluations")
    self._events = events.SummaryWriter(folder)

  def _claim(self) -> filelock.BaseFileLock | None:
    if "://" in str(self._run):
      return None  # Object stores know no locks.
    lock = filelock.FileLock(self._run / ".evaluations.lock")
    try:
      lock.acquire(timeout=0)
    except filelock.Timeout as error:
      raise UserError(
        f"--watch={self._run}: another process watches this run"
      ) from error
    return lock

  def __exit__(self, *unused: Any) -> None:
    """Lets go of the run."""
    self._events.close()
    if self._lock:
      self._lock.release()

  def _remember(self, step: int, line: Mapping[str, Any]) -> None:
    names = {key.split("/")[1] for key in line if key.startswith("evals/")}
    self._done.setdefault(step, set()).update(names)

  def _missing(self, step: int) -> list[str]:
    done = self._done.get(step, set())
    return [name for name in self._evaluators if name not in done]

  def pending(self) -> list[int]:
    """Returns the steps of whole checkpoints that are left, oldest first."""
    folder = self._run / "checkpoints"
    return [
      step
      for step in saved_steps(self._run)
      if self._missing(step)
      and self._failed.get(step, 0) < _TRIES
      and _is_whole(folder / str(step))
    ]

  def finished(self) -> bool:
    """Returns whether the last checkpoint of the whole run is evaluated."""
    last = self._config.get("total_steps")
    if last is None:  # Weights that were not trained here: one checkpoint.
      return not self.pending()
    return not self._missing(last) or self._failed.get(last, 0) >= _TRIES

  def watch(
    self,
    poll_seconds: float,
    say: Callable[[int, Mapping[str, Result]], None],
  ) -> None:
    """Returns once every checkpoint up to the last one is evaluated.

    Args:
      poll_seconds: how long to wait where there is nothing to do.
      say: told each step and what was found.
    """
    while True:
      pending = self.pending()
      if pending:
        # One, then a look again: the next may be gone, or older ones back.
        found = self.evaluate(pending[0])
        if found is not None:
          say(pending[0], found)
        else:
          time.sleep(poll_seconds)
      elif self.finished():
        return
      else:
        time.sleep(poll_seconds)

  def evaluate(self, step: int) -> dict[str, Result] | None:
    """Evaluates one checkpoint and writes what was found.

    Returns:
      The results, or None where it was deleted before it was read whole, which
      the trainer does to all but the newest (config.checkpoint.keep).
    """
    checkpoint = self._run / "checkpoints" / str(step)
    try:
      params = saved.load_params(checkpoint, self._config, self._mesh)
      params = decoders.joined(params, checkpoint, self._config, self._mesh)
    except Exception as error:  # Whatever half a checkpoint leads to.
      self._failed[step] = self._failed.get(step, 0) + 1
      if not _is_whole(checkpoint):
        logging.warning("step %d: deleted before it was read", step)
        return None
      if self._failed[step] == _TRIES:
        reason = str(error).strip().splitlines()[0][:200]
        logging.warning("step %d: cannot be read (%s)", step, reason)
      return None
    chosen = {name: self._evaluators[name] for name in self._missing(step)}
    found = results.run(chosen, params)
    self._write(step, checkpoint, found)
    return found

  def _write(self, step, checkpoint, found) -> None:
    """Writes the details first: the line says that all is done."""
    results.write(
      self._run / "evaluations" / f"{step}.json",
      checkpoint=checkpoint,
      evals=self._config.evals,
      results=found,
    )
    line = {"step": step, **results.flat(found)}
    path = self._run / NAME
    text = json.dumps(line) + "\n"
    if "://" in str(path):  # Object stores cannot append.
      write_whole(path, path.read_text() + text)
    else:
      with path.open("a") as file:
        file.write(text)
    self._remember(step, line)
    for name, result in found.items():
      for metric, value in result.metrics.items():
        if math.isfinite(value):
          self._events.add_scalar(f"evals/{name}/{metric}", value, step)
    self._events.flush()


def _is_whole(checkpoint: epath.Path) -> bool:
  """Returns whether a checkpoint is there, and complete."""
  try:
    return checkpoint.is_dir() and ocp.utils.is_checkpoint_finalized(checkpoint)
  except (OSError, ValueError):
    return False
