"""What a start would say of folder, weights, data and evaluations.

They are opened as at a start, but nothing is computed or written.
"""

from collections.abc import Iterator

from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip import build, extras, training_data
from big_siglip.data.first_look import first_look
from big_siglip.data.mixture import epochs, opening_faults
from big_siglip.errors import UserError
from big_siglip.run import advice, libraries, workdir
from big_siglip.schema.sources import is_own
from big_siglip.trained import preview

_NOT_GIVEN = "=None: must be"
_MOST = 3  # Shards to name.


def lines(config: ConfigDict, mesh: Mesh, folder: str | None) -> Iterator[str]:
  """Yields a line for each thing that was looked at.

  Args:
    config: a whole one; see `from_init`.
    mesh: of any devices.
    folder: the run's, if any.

  Raises:
    UserError: as at a start. Data that are not given are no mistake.
  """
  libraries.check(config)
  if folder:
    yield _folder_line(config, folder)
  if config.init.path is None:
    yield "weights: none; all parameters start at random"
  else:
    yield from preview.lines(config)
  yield from _data_lines(config)
  for name in config.evals:
    yield _evaluation_line(config, mesh, name)


def _folder_line(config: ConfigDict, folder: str) -> str:
  path, _ = workdir.check(folder, config)
  if steps := workdir.saved_steps(path):
    return f"workdir: {path} goes on from step {steps[-1]}"
  return f"workdir: {path} holds no checkpoint; training starts at step 0"


def _data_lines(config: ConfigDict) -> Iterator[str]:
  data = config.data
  entries = list(data.mixture.values()) or [data]
  if missing := [e.name for e in entries if not _lies_there(e.name, e.path)]:
    yield f"data: {', '.join(missing)}: drawn at the first start"
    return
  try:
    source = training_data.train_source(config)
  except UserError as error:
    if not _is_not_given(error):
      raise
    yield f"data: not given ({error})"
    return
  build.preprocess(config)
  drawn = epochs(source, config.total_steps * config.batch_size)
  share = ", ".join(f"{name} {value:.2f}" for name, value in drawn.items())
  yield f"data: {len(source):,} examples; after all steps, {share}"
  for line in advice.lines(config, source):
    yield f"note: {line}"
  yield from first_look(source)
  faults = opening_faults(source)
  for where, fault in faults[:_MOST]:
    name = f"{where}: {fault.name}" if where else fault.name
    yield f"data: skipped: {name}: {fault.reason} ({fault.kind})"
  if len(faults) > _MOST:
    yield f"data: skipped: {len(faults) - _MOST} more"


def _evaluation_line(config: ConfigDict, mesh: Mesh, name: str) -> str:
  spec = config.evals[name]
  what = f"evals.{name}: {spec.kind} on {spec.data}"
  if not _lies_there(spec.data, spec.path):
    return f"{what}: drawn at the first start"
  one = config.copy_and_resolve_references()
  with one.unlocked():
    one.evals = {name: spec}
  try:
    build.evaluators(one, mesh)
  except UserError as error:
    if not _is_not_given(error):
      raise
    return f"{what}: not given ({error})"
  return f"{what}: opened, every {spec.every} steps"


def _lies_there(name: str, path: str | None) -> bool:
  """Returns whether opening a data set would not make it first."""
  if not is_own(name):
    return True
  with extras.needed_by(f"config.data.name={name!r}", "demo"):
    from big_siglip.datasets import prepare
  return prepare.is_prepared(name, path)


def _is_not_given(error: UserError) -> bool:
  return f".path{_NOT_GIVEN}" in str(error)
