"""The loop: wiring, logging, saving, evaluating; no maths."""

from collections.abc import Mapping
import contextlib
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict

from big_siglip import build, progress, sharding, training_data
from big_siglip.checkpoint import Checkpoints
from big_siglip.data import faults
from big_siglip.data.mixture import epochs
from big_siglip.data.pipeline import train_batches
from big_siglip.errors import UserError
from big_siglip.evaluation.training import Evaluations, logged
from big_siglip.evaluators import Result
from big_siglip.metrics import MetricsWriter
from big_siglip.run import advice, libraries, nonfinite, processes, workdir
from big_siglip.run.firsts import Firsts
from big_siglip.run.meter import Meter
from big_siglip.run.preemption import Interrupted, StopSignal
from big_siglip.run.skipped import Skipped
from big_siglip.run.starts import Starts
from big_siglip.run.terminal import say
from big_siglip.trained import finetuning, first_state, from_init, initial


def train(
  config: ConfigDict, folder: str | None, stop: StopSignal | None = None
) -> None:
  """Trains to `config.total_steps`, from the newest checkpoint in `folder`.

  Returns early, after saving, when told to stop (SIGTERM). Where a run was
  stopped or killed changes nothing: it ends with the same bits.

  Args:
    config: without mistakes (`config.find_problems`).
    folder: where everything is written; made if it does not exist.
    stop: which listens already; None: one that listens from now on.

  Raises:
    UserError: devices, data, folder or libraries do not fit the config.
    RunStopped: the loss is not finite, or too many examples are no good.
  """
  if not folder:
    raise UserError("--workdir=DIR must be given (or --dry_run)")
  with contextlib.ExitStack() as stack:
    if stop is None:
      stop = StopSignal(several=config.distributed)
      stack.callback(stop.close)
    if config.distributed:
      processes.join()
    if jax.process_index():  # One speaks for all.
      stack.enter_context(progress.speaking(False))
    stack.enter_context(processes.stopping_together())
    libraries.check(config)
    config, taken = from_init.fill(config, folder)
    for line in taken if jax.process_index() == 0 else ():
      say(line)
    Loop(config, folder, stop, stack).run()


class Loop:
  """One process's run of a config, from restored state to the last step."""

  def __init__(self, config, folder, stop: StopSignal, stack):
    """Builds everything; closing `stack` saves and flushes what is pending."""
    self._config, self._stop = config, stop
    self._mesh = build.mesh(config)
    with progress.waiting("opening the data"):
      self._source = training_data.train_source(config, self._say)
      views = build.views(config)
      self._evaluations = Evaluations.of(config, self._mesh)
    with progress.waiting("laying out the model"):
      self._program = build.program(config, self._mesh)
    first_state.check_memory(config, self._program.abstract_state)
    self._fields = build.step_fields(config)
    self._folder = workdir.claim(folder, config)
    processes.wait_for_all("workdir")
    self._checkpoints = Checkpoints(
      self._folder / "checkpoints", keep=config.checkpoint.keep
    )
    stack.callback(self._checkpoints.close)
    with progress.waiting("making or reading the train state"):
      self._restore()
    self._batches = train_batches(
      self._source,
      views,
      batch_size=config.batch_size,
      seed=config.seed,
      start=self._step + self._shift,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      num_workers=config.data.num_workers,
      num_threads=config.data.num_threads,
      decoder=config.data.decoder,
      stall_seconds=config.data.stall_seconds,
    )
    stack.callback(self._batches.close)
    self._writer = self._open_writer(stack)
    self._starts = Starts(self._folder, self._step) if self._writer else None
    self._meter = Meter(config, self._mesh.size)
    self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
    self._firsts = Firsts(config, self._mesh)

  def _restore(self) -> None:
    restored = self._checkpoints.restore(self._program.abstract_state)
    if restored is None:
      initial.check_embeddings(self._source, self._config)
      advice.tell(self._config, self._source, self._say)
      self._state, data = first_state.make(
        self._config, self._program, self._mesh, self._say
      )
    else:
      self._state, data = restored
      self._say(f"resuming from step {int(self._state.step)}")
    self._began = data.get("began", {})
    if self._began:  # The state is as before; the step is another.
      self._program = build.program(self._config, self._mesh, began=self._began)
    self._step = int(self._state.step)
    # A stage may have had other batches before.
    self._shift = int(data.get("next_batch", 0)) - self._step
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

  def _drawn(self, step: int) -> int:
    """Returns how many examples were drawn until after a step."""
    return (step + self._shift) * self._config.batch_size

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
    self._evaluated_or_left()  # A stopped run may have left it undone.
    while self._step < self._config.total_steps:
      host_batch = self._next_batch()
      if host_batch is not None:
        self._take_step(host_batch)
      last = self._step == self._config.total_steps
      stopping = host_batch is None or self._stop.requested(self._step)
      if last or self._step % self._config.log_every == 0:
        self._settle()
      stopping = stopping or not self._evaluated_or_left()
      if last or stopping or self._step % self._config.checkpoint.every == 0:
        self._save()
      if stopping:
        self._say(f"stopped after step {self._step}; run again to go on")
        return
    with progress.waiting("writing the checkpoint"):
      self._checkpoints.wait()
    if self._config.init.path and self._config.init.state != "all":
      random = self._program.init_params
      params, folder = self._state.params, self._folder
      with progress.waiting("comparing with the start"):
        report = finetuning.report(
          self._config, params, random, self._mesh, folder
        )
      self._say(report)
    self._say(f"done: {self._step} steps; results lie in {self._folder}")
    self._say(f"to train for longer: {workdir.how_to_go_on(self._folder)}")

  def _next_batch(self) -> Mapping[str, Any] | None:
    """Returns a batch; None where a signal came first: data may be slow."""
    try:
      with (
        self._stop.interruptible(),
        self._meter.waiting(),
        self._firsts.reading(),
      ):
        return next(self._batches)
    except Interrupted:
      return None

  def _take_step(self, host_batch: Mapping[str, Any]) -> None:
    """Dispatches one step, then reads the metrics of the one before it."""
    self._skipped.name(faults.from_rows(host_batch["skipped"]), self._step + 1)
    batch = {name: host_batch[name] for name in self._fields}
    batch = sharding.to_global(self._mesh, batch)
    with self._firsts.compiling(batch) as is_new:
      self._state, metrics = self._program.step(self._state, batch)
    if is_new:  # The time of compiling is not of training.
      self._meter.restart()
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
    if self._writer:
      self._writer.step_done()
    self._skipped.count(metrics["faults"], self._drawn(step))
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
    raise nonfinite.stopped(step, metrics, self._folder, steps)

  def _log(self, step: int, metrics: Mapping[str, Any]) -> None:
    hidden = ("finite", "faults")
    values = {k: float(v) for k, v in metrics.items() if k not in hidden}
    values |= self._meter.read()
    values |= self._skipped.metrics()
    values |= epochs(self._source, self._drawn(step))
    values["skipped_steps"] = self._skipped_steps
    self._skipped.write()
    self._write(step, values)

  def _write(self, step: int, values: Mapping[str, float]) -> None:
    if self._writer and self._starts:
      self._writer.write(step, values)
      self._starts.seen(step)

  def _evaluated_or_left(self) -> bool:
    """Evaluates if it is due; returns False where a signal kept it from that.

    The next start does it then. What is logged is never interrupted.
    """
    due = self._evaluations.due(self._step, self._evaluated)
    results = {}
    if due:
      self._settle()
    try:
      with self._stop.interruptible():
        for name in due:
          weights = self._state.weights
          results[name] = self._evaluations.run(name, weights, self._step)
    except Interrupted:
      return False
    self._evaluated = self._step
    if results:
      self._write_evaluations(results)
      self._meter.restart()  # The time of evaluating is not of training.
    return True

  def _write_evaluations(self, results: Mapping[str, Result]) -> None:
    self._write(self._step, logged(results))
    if self._writer:
      self._writer.draw(self._step, self._evaluations.pictures(results))

  def _save(self) -> None:
    self._settle()  # Never save what was not seen to be finite.
    self._skipped.write()
    position = {
      "next_batch": self._step + self._shift,
      "skipped": self._skipped.counts(),
      "skipped_steps": self._skipped_steps,
      "evaluated_step": self._evaluated,
    }
    if self._began:
      position["began"] = self._began
    with progress.waiting("saving", after=4):  # After the one before.
      self._checkpoints.save(self._state, position)

  def _say(self, text: str) -> None:
    if jax.process_index() == 0:
      say(text)
