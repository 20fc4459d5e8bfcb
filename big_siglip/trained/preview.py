"""What a start will take of trained weights, by their shapes alone."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from big_siglip import build, sharding
from big_siglip.errors import raise_problems
from big_siglip.models import make_model
from big_siglip.models.resampling import may_resample
from big_siglip.trained import saved, stages
from big_siglip.trained.fitting import (
  check_towers,
  differences,
  is_wanted,
  of_model,
)


def lines(config: ConfigDict) -> Iterator[str]:
  """Yields what is found at `config.init.path`, and what becomes of it.

  Raises:
    UserError: no weights lie there, or they do not fit.
  """
  path, goes_on = config.init.path, config.init.state == "all"
  if goes_on:
    stages.find(config)
  found, trained, _ = saved.open_model(path, tokenizer=False)
  if not goes_on:
    check_towers(config, trained.model)
  fresh = _shapes(config, config.model.scan)
  towers = {name.split("/")[0] for name in fresh}
  wanted = is_wanted(config)
  old = {
    name: shape
    for name, shape in _shapes(trained, config.model.scan, whole=True).items()
    if wanted(name) and name.split("/")[0] in towers
  }
  taken = [name for name in fresh if name in old]
  unlike = [name for name in taken if old[name] != fresh[name]]
  misfits = [n for n in unlike if not may_resample(n, old[n], fresh[n])]
  new = [n for n in fresh if n not in old and wanted(n) and of_model(n)]
  left = [name for name in old if name not in fresh]
  problems = [
    f"{name} has shape {list(old[name])}, and config.model wants "
    f"{list(fresh[name])}"
    for name in misfits
  ]
  if not goes_on:
    problems += [f"has no {name}" for name in new]
    problems += [f"{name} has no place in config.model" for name in left]
  raise_problems([f"config.init.path={path}: {p}" for p in problems[:20]])
  what = "the whole state goes on" if goes_on else "parameters alone are taken"
  yield f"weights: {found}: {what}"
  yield (
    f"weights: {len(taken)} of {len(fresh)} parameters are taken, the others "
    "start at random"
  )
  for name in unlike:
    yield (
      f"weights: {name} is resampled from {list(old[name])} to "
      f"{list(fresh[name])}"
    )
  for name in left:
    yield f"weights: {name} is left behind"
  yield from differences(trained, config)


def _shapes(
  config: ConfigDict, scan: bool, *, whole: bool = False
) -> dict[str, tuple[int, ...]]:
  """Returns the parameters' shapes by path, without those of an adapter."""
  settings = ConfigDict(config.model.to_dict())
  settings.scan = scan
  if whole:
    settings.lora.rank = 0  # Added to the kernels when it is loaded.
  shaped = ConfigDict({"model": settings, "data": config.data})
  params = build.abstract_params(make_model(settings), shaped, whole=whole)
  return {name: leaf.shape for name, leaf in sharding.flatten(params).items()}
