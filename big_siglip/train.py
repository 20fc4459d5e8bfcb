"""The loop: wiring, logging, saving, evaluating; no maths."""

from collections.abc import Mapping
import contextlib
import json
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict

from big_siglip import build, sharding, training_data
from big_siglip.checkpoint import Checkpoints
from big_siglip.data import faults
from big_siglip.data.mixture import epochs
from big_siglip.data.pipeline import train_batches
from big_siglip.errors import naming_evaluation, RunStopped, UserError
from big_siglip.metrics import MetricsWriter, read_metrics
from big_siglip.models import merged
from big_siglip.run import processes, workdir
from big_siglip.run.meter import Meter
from big_siglip.run.preemption import StopSignal
from big_siglip.run.skipped import Skipped
from big_siglip.run.starts import Starts
from big_siglip.train_step import TrainState
from big_siglip.trained import initial


def train(config: ConfigDict, folder: str | None) -> None:
  """Trains to `config.total_steps`, from the newest checkpoint in `folder`.

  Returns early, after saving, when the process is told to stop (SIGTERM). Where
  a run was stopped or killed makes no difference to the parameters at its end:
  they are equal bit for bit.

  Args:
    config: without mistakes (`config.find_problems`).
    folder: where everything is written; made if it does not exist.

  Raises:
    UserError: devices, data or folder do not fit the config.
    RunStopped: the loss is not finite, or too many examples are no good.
  """
  if not folder:
    raise UserError("--workdir=DIR must be given (or --dry_run)")
  stop = StopSignal()
  if config.distributed:
    processes.join()
  with contextlib.ExitStack() as stack, processes.stopping_together():
    Loop(config, folder, stop, stack).run()


class Loop:
  """One process's run of a config, from restored state to the last step."""

  def __init__(self, config, folder, stop: StopSignal, stack):
    """Builds everything; closing `stack` saves and flushes what is pending."""
    self._config = config
    self._stop = stop
    self._mesh = build.mesh(config)
    self._source = training_data.train_source(config)
    preprocess = build.preprocess(config)
    self._evaluators = build.evaluators(config, self._mesh)
    self._program = build.program(config, self._mesh)
    self._folder = workdir.claim(folder, config)
    processes.wait_for_all("workdir")
    self._checkpoints = Checkpoints(
      self._folder / "checkpoints", keep=config.checkpoint.keep
    )
    stack.callback(self._checkpoints.close)
    self._restore()
    self._batches = train_batches(
      self._source,
      preprocess,
      batch_size=config.batch_size,
      seed=config.seed,
      start=self._step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      num_workers=config.data.num_workers,
      num_threads=config.data.num_threads,
      stall_seconds=config.data.stall_seconds,
    )
    stack.callback(self._batches.close)
    self._writer = self._open_writer(stack)
    self._starts = Starts(self._folder, self._step) if self._writer else None
    self._meter = Meter(config, self._mesh.size)
    self._pending: tuple[int, Mapping[str, jax.Array]] | None = None

  def _restore(self) -> None:
    restored = self._checkpoints.restore(self._program.abstract_state)
    if restored is None:
      initial.check_embeddings(self._source, self._config.init.path)
      self._state, data = self._first_state(), {}
    else:
      self._state, data = restored
    self._step = int(data.get("next_batch", 0))
    self._skipped = Skipped(
      self._folder,
      self._config.data.name,
      self._source,
      max_share=self._config.data.max_skipped,
      start_step=self._step,
      counts=data.get("skipped", {}),
    )
    self._skipped_steps = int(data.get("skipped_steps", 0))
    self._evaluated = int(data.get("evaluated_step", -1))

  def _first_state(self) -> TrainState:
    state = self._program.init()
    if self._config.init.path:
      params = initial.initial_params(self._config, state.params, self._mesh)
      state = state.replace(params=params)
    return state

  def _open_writer(self, stack) -> MetricsWriter | None:
    if jax.process_index() != 0:
      return None
    writer = MetricsWriter(
      self._folder,
      start_step=self._step,
      evaluated_step=self._evaluated,
      total_steps=self._config.total_steps,
      config=workdir.as_json(self._config),
      use_wandb=self._config.wandb,
    )
    stack.callback(writer.close)
    return writer

  def run(self) -> None:
    """Takes the steps that are left."""
    if self._step:
      self._say(f"resuming from step {self._step}")
    self._evaluate_if_due()  # A stopped run may have left it undone.
    while self._step < self._config.total_steps:
      self._take_step()
      last = self._step == self._config.total_steps
      stopping = self._stop.requested(self._step)
      if last or self._step % self._config.log_every == 0:
        self._settle()
      if not stopping:
        self._evaluate_if_due()
      if last or stopping or self._step % self._config.checkpoint.every == 0:
        self._save()
      if stopping:
        self._say(f"stopped after step {self._step}; run again to go on")
        return
    self._checkpoints.wait()
    if self._config.init.path:
      self._report_change()
    self._say(f"done: {self._step} steps; results lie in {self._folder}")

  def _report_change(self) -> None:
    """Writes finetuning.json: what moved, and the evaluations around it."""
    now, first = (
      merged(state.params, self._config.model)
      for state in (self._state, self._first_state())
    )
    changed = initial.change(now, first)
    if self._writer is None:
      return
    evaluations = {}
    for line in read_metrics(self._folder):
      for name in line.keys() - {"step"}:
        if name.startswith("evals/"):
          evaluations.setdefault(name, []).append(line[name])
    report = {
      "init": self._config.init.path,
      "steps": self._step,
      "relative_change": changed,
      "evaluations": {
        name: {"before": values[0], "after": values[-1]}
        for name, values in sorted(evaluations.items())
      },
    }
    text = json.dumps(report, indent=2)
    workdir.write_whole(self._folder / "finetuning.json", text + "\n")
    self._say(f"{'evaluation':46} {'before':>8} {'after':>8}")
    for name, value in report["evaluations"].items():
      self._say(f"{name:46} {value['before']:8.4f} {value['after']:8.4f}")
    for part, value in changed.items():
      self._say(f"{part:46} moved by {value:.2%}")

  def _take_step(self) -> None:
    """Dispatches one step, then reads the metrics of the one before it."""
    with self._meter.waiting():
      host_batch = next(self._batches)
    named = faults.from_rows(host_batch["skipped"])
    self._skipped.name(named, self._step + 1)
    keys = ("image", "text", "image_index", "faults")
    batch = sharding.to_global(self._mesh, {k: host_batch[k] for k in keys})
    self._state, metrics = self._program.step(self._state, batch)
    self._settle()
    self._step += 1
    self._pending = (self._step, metrics)

  def _settle(self) -> None:
    """Waits for the pending step; logs it, or ends the run if not finite."""
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    metrics = jax.device_get(metrics)
    self._meter.step_done()
    self._skipped.count(metrics["faults"], step * self._config.batch_size)
    if not metrics["finite"]:
      self._handle_nonfinite(step, metrics)
    if step % self._config.log_every == 0 or step == self._config.total_steps:
      self._log(step, metrics)

  def _handle_nonfinite(self, step: int, metrics) -> None:
    if self._config.nonfinite == "skip":
      self._skipped_steps += 1
      logging.warning("step %d: loss or gradient not finite; left out", step)
      return
    self._checkpoints.wait()
    steps = self._checkpoints.steps()
    good = self._folder / "checkpoints" / str(steps[-1]) if steps else "none"
    raise RunStopped(
      f"step {step}: the loss is {metrics['loss']} and the gradient's norm "
      f"{metrics['grad_norm']}; last good checkpoint: {good} (a lower "
      "config.optimizer.learning_rate or clip_norm may help; "
      "config.nonfinite=skip leaves such steps out)"
    )

  def _log(self, step: int, metrics: Mapping[str, Any]) -> None:
    hidden = ("finite", "faults")
    values = {k: float(v) for k, v in metrics.items() if k not in hidden}
    values |= self._meter.read()
    values |= self._skipped.metrics()
    values |= epochs(self._source, step * self._config.batch_size)
    values["skipped_steps"] = self._skipped_steps
    self._skipped.write()
    self._write(step, values)

  def _write(self, step: int, values: Mapping[str, float]) -> None:
    if self._writer:
      self._writer.write(step, values)
      self._starts.seen(step)

  def _evaluate_if_due(self) -> None:
    step = self._step
    # A random start has nothing to show; trained weights are a guard.
    if step == 0 and not self._config.init.path:
      return
    if step == self._evaluated:
      return
    results = {}
    for name, evaluator in self._evaluators.items():
      every = self._config.evals[name].every
      if step % every == 0 or step == self._config.total_steps:
        self._settle()
        try:
          with naming_evaluation(name):
            metrics = evaluator(self._state.params).metrics
        except UserError:  # One line says what is wrong with config or data.
          raise
        except Exception as error:
          raise RuntimeError(f"evals.{name} failed at step {step}") from error
        results |= {f"evals/{name}/{k}": v for k, v in metrics.items()}
    self._evaluated = step
    if results:
      self._meter.restart()  # The time of evaluating is not of training.
      self._write(step, results)

  def _save(self) -> None:
    self._settle()  # Never save what was not seen to be finite.
    self._skipped.write()
    position = {
      "next_batch": self._step,
      "skipped": self._skipped.counts(),
      "skipped_steps": self._skipped_steps,
      "evaluated_step": self._evaluated,
    }
    self._checkpoints.save(self._state, position)

  def _say(self, text: str) -> None:
    if jax.process_index() == 0:
      print(text, flush=True)
