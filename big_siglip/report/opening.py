"""From the paths that a report is asked for to what lies there."""

from collections.abc import Sequence

from etils import epath

from big_siglip.errors import UserError
from big_siglip.evaluation import reading
from big_siglip.report.runs import read_run, Run
from big_siglip.run import workdir


def read_runs(paths: Sequence[str]) -> list[Run]:
  """Returns the runs, or the results of evaluations, in the order given.

  Raises:
    UserError: a folder holds no run, or stands twice.
  """
  folders = []
  for path in paths:
    folder = epath.Path(path)
    folder = folder if "://" in path else folder.expanduser().resolve()
    if folder in folders:
      raise UserError(f"{path}: stands twice among the runs")
    folders.append(folder)
  names = _short_names(folders)
  return [
    read_run(*pair) if (pair[0] / "config.json").exists() else _evaluated(*pair)
    for pair in zip(folders, names, strict=True)
  ]


def _evaluated(folder: epath.Path, name: str) -> Run:
  """Returns the results of an evaluation as a run: what is known of it."""
  if not reading.has_results(str(folder)):
    workdir.read_config(folder)  # Says that there is none.
  results = reading.read(str(folder))
  notes = []
  checkpoint = epath.Path(results.checkpoint)
  home = checkpoint
  if checkpoint.parent.name == "checkpoints":
    home = checkpoint.parent.parent
  try:
    config = workdir.read_config(home)
  except (UserError, OSError):
    config = {"data": {}}
    notes.append(f"The model is gone: {results.checkpoint}.")
  config["evals"] = {k: dict(v.spec) for k, v in results.evaluations.items()}
  return Run(
    name=name,
    folder=folder,
    config=config,
    lines=[{"step": results.step, **reading.flat(results)}],
    starts=[],
    skipped=[],
    finetuning={},
    checkpoint=checkpoint if checkpoint.exists() else None,
    notes=notes,
    results=results,
  )


def _short_names(folders: Sequence[epath.Path]) -> list[str]:
  """Returns the shortest ends of the paths that differ from each other."""
  names: list[str] = []
  for count in range(1, 1 + max(len(folder.parts) for folder in folders)):
    names = ["/".join(folder.parts[-count:]) for folder in folders]
    if len(set(names)) == len(names):
      break
  return names
