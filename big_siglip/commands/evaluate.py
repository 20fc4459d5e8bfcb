"""Evaluates a checkpoint as its run did, or otherwise; or a run as it trains.

big-siglip evaluate --checkpoint=runs/digits
big-siglip evaluate --checkpoint=models/b16 --output=results \
  --evals=configs/evals/imagenet.py --evals.imagenet.path=PATH
big-siglip evaluate --watch=runs/digits

--evals names a file with evaluations alone (configs/evals/ has examples);
--config takes those of a whole config, which must preprocess as the checkpoint
did. Prints a table; --json prints one JSON object a checkpoint instead.
--output=FOLDER writes results.json, pictures, and NAME.csv of each evaluation:
a row for each image (file, label, right, predicted, score), or each query. Two
such folders are what big-siglip compare compares. --rows=FILE.csv (or .parquet,
.jsonl) writes the rows alone, or elsewhere; --norows none. --watch evaluates
every new checkpoint of a run, writes RUN/evaluations.jsonl and
RUN/evaluations/, and ends with the run, or when it is told to (SIGTERM);
started again, it goes on. --distributed shares the work among processes, each
started by the same command.
docs/evaluation.md says what is measured.
"""

import json
import signal
import sys

from absl import flags, logging
from ml_collections import ConfigDict

from big_siglip import extras, progress
from big_siglip.command_line import parse_evaluation
from big_siglip.commands import sight, tables
from big_siglip.errors import exit_on_error, naming, UserError

flags.adopt_module_key_flags(sight)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "A run's or model's folder, RUN/checkpoints/STEP, or published weights.",
)
_WEIGHTS = flags.DEFINE_enum(
  "weights",
  "trained",
  ["trained", "teacher"],
  "Whose: the teacher's, of a run with self-distillation.",
)
_WATCH = flags.DEFINE_string(
  "watch", None, "A run's folder: evaluate each checkpoint as it appears."
)
_POLL = flags.DEFINE_float(
  "poll_seconds", 5.0, "How long to wait for a new checkpoint.", 0.01
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Folder for results.json, pictures and rows."
)


class _FileFlag(flags.Flag):
  """A flag that may stand alone (--rows, --norows) or name a file."""

  def __init__(self, name: str, help_string: str):
    super().__init__(
      flags.ArgumentParser(),
      flags.ArgumentSerializer(),
      name,
      None,
      help_string,
      boolean=True,
    )


_ROWS = flags.DEFINE_flag(
  _FileFlag(
    "rows",
    "Write what became of each image: --rows=FILE.csv (.parquet, .jsonl), or "
    "with --output into that folder, as is the default there.",
  )
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Join other processes, as config.distributed does."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON objects.")

_YES, _NO = "true", "false"  # What absl makes of --rows and --norows.
_Given = tuple[ConfigDict | None, ConfigDict | None]


def parse(argv: list[str]) -> _Given:
  """Returns the configs that say what to evaluate, None for the run's own."""
  with exit_on_error():
    return parse_evaluation(argv)


def main(given: _Given) -> None:
  """Evaluates one checkpoint, or all of a run."""
  logging.set_verbosity(logging.WARNING)
  with exit_on_error():
    if _WATCH.value is not None and _DISTRIBUTED.value:
      raise UserError("--watch: must be one process, without --distributed")
    if _WATCH.value is not None and _WEIGHTS.value == "teacher":
      raise UserError("--weights=teacher: goes with --checkpoint, not --watch")
    if _WATCH.value is not None and sight.MAX_PATCHES.value is not None:
      raise UserError("--max_patches: goes with --checkpoint, not --watch")
    if (_CHECKPOINT.value is None) == (_WATCH.value is None):
      raise UserError("--checkpoint=RUN or --watch=RUN must be given")
    _check_rows(_ROWS.value)
    if _OUTPUT.value is not None:
      with extras.needed_by("--output"):  # Before what takes minutes.
        import matplotlib  # noqa: F401
    with progress.loading():
      from big_siglip import platforms
      from big_siglip.evaluation import watch  # noqa: F401

      platforms.prepare(keep=not _DISTRIBUTED.value)
    if _WATCH.value is not None:
      _watch(_WATCH.value, given)
    else:
      _evaluate(_CHECKPOINT.value, given)


def _check_rows(value: str | None) -> None:
  """Checks --rows before anything is loaded."""
  if value in (None, _NO):
    return
  if _WATCH.value is not None:
    raise UserError("--rows: goes with --checkpoint, not with --watch")
  if value != _YES:
    tables.check(value, "--rows")
  elif _OUTPUT.value is None:
    raise UserError(
      "--rows: name a file (--rows=rows.csv), or a folder (--output=FOLDER)"
    )


def _evaluate(path: str, given: _Given) -> None:
  import jax

  from big_siglip import build, sharding
  from big_siglip.evaluation import results
  from big_siglip.run import processes
  from big_siglip.trained import decoders, naflex, saved, teachers

  if _DISTRIBUTED.value:
    processes.join()
  checkpoint, trained, load = saved.open_model(path)
  load_params = teachers.choose(_WEIGHTS.value, checkpoint, trained, load)
  if sight.MAX_PATCHES.value is not None:
    with naming({"max_patches": "--max_patches"}):
      naflex.set_length(trained.model, sight.MAX_PATCHES.value, path)
  config = results.with_evals(trained, *given)
  # How many devices trained it, and with which batch, does not matter here.
  mesh = sharding.make_mesh()
  with progress.waiting("opening the data"):
    evaluators = build.evaluators(config, mesh)
  params = decoders.joined(load_params(mesh), checkpoint, config, mesh)
  with processes.stopping_together():
    found = results.run(evaluators, params)
  if jax.process_index() != 0:
    return  # One speaks for all.
  files = _write(checkpoint, config, found)
  if _JSON.value:
    step = {"step": results.step_of(checkpoint)}
    print(json.dumps({**step, **results.flat(found)}))
    return
  print(f"{checkpoint}")
  print(results.table(found))
  for file in files:
    print(f"  {file}")


def _write(checkpoint, config, found) -> list:
  """Writes what --output and --rows ask for, and returns the files."""
  if _OUTPUT.value is None and _ROWS.value in (None, _NO):
    return []
  from etils import epath

  from big_siglip.evaluation import pictures, results

  folder = epath.Path(_OUTPUT.value or "").expanduser()
  of_rows, files = {}, []
  if _ROWS.value != _NO:
    of_rows = results.write_rows(found, _rows_file(folder))
  if _OUTPUT.value is not None:
    files.append(folder / "results.json")
    results.write(
      files[0],
      checkpoint=checkpoint,
      evals=config.evals,
      results=found,
      files=of_rows,
    )
    files += pictures.draw(folder, found)
  said = [
    f"{file}{results.told_of_wrong(found[name])}"
    for name, file in of_rows.items()
  ]
  return [*files, *said]


def _rows_file(folder):
  """Returns where the rows of an evaluation go, from the names of all."""
  if _ROWS.value in (None, _YES):
    return lambda name, several: folder / f"{name}.csv"
  from etils import epath

  file = epath.Path(_ROWS.value).expanduser()

  def place(name: str, several: bool):
    stem = f"{file.stem}-{name}" if several else file.stem
    return file.with_name(f"{stem}{file.suffix}")

  return place


def _watch(path: str, given: _Given) -> None:
  from etils import epath

  from big_siglip import build, sharding
  from big_siglip.evaluation import results, watch

  # Whatever it is at is done again when it is started again.
  signal.signal(signal.SIGTERM, _stop)
  signal.signal(signal.SIGINT, _stop)
  run = epath.Path(path)
  run = run if "://" in path else run.expanduser().resolve()
  trained = watch.wait_for_config(run, _POLL.value)
  config = results.with_evals(trained, *given)
  mesh = sharding.make_mesh()
  evaluators = build.evaluators(config, mesh)

  def say(step, found):
    if _JSON.value:
      print(json.dumps({"step": step, **results.flat(found)}), flush=True)
    else:
      print(f"step {step}\n{results.table(found)}", flush=True)

  with watch.Watcher(run, config, evaluators, mesh) as watcher:
    watcher.watch(_POLL.value, say)
  if not _JSON.value:
    print(f"done: {run / watch.NAME}", flush=True)


def _stop(signum, frame) -> None:
  del frame
  print(f"{signal.Signals(signum).name}: stopped", file=sys.stderr, flush=True)
  sys.exit(0)
