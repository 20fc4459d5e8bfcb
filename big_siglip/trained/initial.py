"""A run that starts from trained weights instead of random ones.

Towers may differ from those of the weights in resolution, patch size, text
length and vocabulary; everything else must be alike.
"""

from typing import Any

from absl import logging
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip import sharding
from big_siglip.config import has_image_tower
from big_siglip.data.sources import Source
from big_siglip.errors import raise_problems
from big_siglip.models import merged
from big_siglip.models.stacking import restack_leaves
from big_siglip.sharding import path_string
from big_siglip.trained import saved
from big_siglip.trained.fitting import (
  check_towers,
  fit_to,
  is_wanted,
  of_model,
  take,
  warn_of_differences,
)


def initial_params(config: ConfigDict, random: Any, mesh: Mesh) -> Any:
  """Returns the parameters that a run starts from.

  Args:
    config: `config.init` names the weights and which towers to take: both
      (with scale and bias), or one; the other stays random.
    random: the parameters of a random start, on their devices.
    mesh: where they lie.

  Raises:
    UserError: no weights lie there, or they do not fit; or the preprocessing is
      not that of the weights.
  """
  path, wanted = config.init.path, is_wanted(config)
  names = {name for name in sharding.flatten(random) if of_model(name)}
  towers = {name.split("/")[0] for name in names}
  if not any(wanted(name) for name in names):
    return random  # A new text tower for embeddings.
  origin, source = _load(path, config.model.scan, mesh)
  check_towers(config, origin.model)
  # A tower that the run does not have has nothing to be compared with.
  old = {
    name: leaf
    for name, leaf in source.items()
    if wanted(name) and name.split("/")[0] in towers
  }
  warn_of_differences(origin, config)
  params, taken = take(old, random, fit_to(config, origin.data))
  problems = [
    f"config.init.path={path}: has no {name}"
    for name in taken.fresh
    if wanted(name) and name in names
  ]
  problems += taken.misfits
  problems += [
    f"config.init.path={path}: {name} has no place in config.model"
    for name in taken.left
  ]
  raise_problems(problems[:20])
  for name in taken.resampled:
    logging.warning("init: %s is resampled to another shape, or new", name)
  return params


def check_embeddings(source: Source, config: ConfigDict) -> None:
  """Makes sure that embeddings to train on were made by the config's weights.

  Reads these once, and drops them before training starts. Other sources pass.

  Raises:
    UserError: they were made by another model.
  """
  if not (has_image_tower(config) or config.data.mixture):
    path = saved.embedder_path(config)
    saved.load_embedder(path, source.description.parameters)


def change(params: Any, before: Any) -> dict[str, float]:
  """Returns how far each part has moved: |new - old| / |old|.

  Args:
    params: the parameters now.
    before: those at the start, from `initial_params`.
  """
  moved: dict[str, list[float]] = {}
  pairs = zip(_leaves(params), _leaves(before), strict=True)
  for (key, new), (_, old) in pairs:
    part = "/".join(path_string(key).split("/")[:2])
    sums = moved.setdefault(part, [0.0, 0.0])
    for place, value in enumerate(_squares(new, old)):
      sums[place] += float(value)
  return {
    part: (difference / max(norm, 1e-30)) ** 0.5
    for part, (difference, norm) in moved.items()
  }


@jax.jit
def _squares(new: jax.Array, old: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the sums of (new - old)^2 and old^2, by one program of a shape."""
  return ((new - old) ** 2).sum(), (old**2).sum()


def _load(
  path: str, scan: bool, mesh: Mesh
) -> tuple[ConfigDict, dict[str, jax.Array]]:
  """Returns the config, and parameters stacked as `scan` says."""
  config, params = saved.load(path, mesh, tokenizer=False)
  whole = sharding.flatten(merged(params, config.model))
  return config, restack_leaves(whole, scan)


def _leaves(params: Any):
  return jax.tree_util.tree_leaves_with_path(params)
