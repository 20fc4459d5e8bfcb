"""What a start will take of trained weights, by their shapes alone."""

from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from big_siglip import build
from big_siglip.errors import raise_problems
from big_siglip.models import make_model
from big_siglip.sharding import path_string
from big_siglip.trained import saved
from big_siglip.trained.resampling import may_resample


def lines(config: ConfigDict) -> Iterator[str]:
  """Yields what is found at `config.init.path`, and what becomes of it.

  Raises:
    UserError: no weights lie there, or they do not fit.
  """
  path, towers = config.init.path, config.init.towers
  found, trained, _ = saved.open_model(path, tokenizer=False)
  old = _shapes(trained, config.model.scan, whole=True)
  fresh = _shapes(config, config.model.scan)
  tops = [top for top in ("image", "text") if towers in (top, "both")]
  tops = [top for top in tops if any(n.startswith(f"{top}/") for n in fresh)]
  wanted = {
    name: shape
    for name, shape in fresh.items()
    if name.split("/")[0] in tops or (towers == "both" and "/" not in name)
  }
  unlike = [n for n in wanted if n in old and old[n] != wanted[n]]
  resampled = [n for n in unlike if may_resample(n, old[n], wanted[n])]
  where = f"config.init.path={path}"
  problems = [f"{where}: has no {name}" for name in wanted if name not in old]
  problems += [
    f"{where}: {name} has shape {list(old[name])}, and config.model wants "
    f"{list(wanted[name])}"
    for name in unlike
    if name not in resampled
  ]
  problems += [
    f"{where}: {name} has no place in config.model"
    for name in old
    if name not in fresh and name.split("/")[0] in tops
  ]
  raise_problems(problems[:20])
  yield (
    f"weights: {found}: {len(wanted)} of {len(fresh)} parameters are taken, "
    "the others start at random"
  )
  for name in resampled:
    yield (
      f"weights: {name} is resampled from {list(old[name])} to "
      f"{list(wanted[name])}"
    )
  yield from _differences(trained.data, config.data)


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
  return {
    path_string(key): leaf.shape
    for key, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def _differences(trained: Any, given: Any) -> Iterator[str]:
  for field in ("tokenizer", "lowercase", "clean", "pad_id", "resize"):
    if field in trained and trained[field] != given[field]:
      yield (
        f"data.{field}: {given[field]!r}; the weights were trained with "
        f"{trained[field]!r}"
      )
