"""A run that starts from trained weights instead of random ones.

Towers may differ from those of the weights in resolution, patch size, text
length and vocabulary; everything else must be alike.

Shape letters: V and W pieces of two vocabularies, D width, S shared pieces.
"""

from typing import Any

from absl import logging
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip.data.preprocessing import Preprocessing, RULES
from big_siglip.data.sources import Source
from big_siglip.data.sources.embedded import EmbeddedSource
from big_siglip.data.text import make_tokenizer
from big_siglip.errors import raise_problems, UserError
from big_siglip.models import restack, sizes
from big_siglip.sharding import path_string
from big_siglip.trained import saved
from big_siglip.trained.resampling import (
  resample_patches,
  resample_positions,
  stretch_positions,
)

_PIECES = "text/token_embedding/embedding"


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
  path, towers = config.init.path, config.init.towers
  taken = ("image", "text") if towers == "both" else (towers,)
  taken = tuple(tower for tower in taken if tower in random)
  if not taken:
    return random  # A new text tower for embeddings.
  origin, source = _load(path, config.model.scan, mesh)
  _warn_of_differences(origin, config)
  shared = _shared_pieces(origin.data, config.data) if "text" in taken else None
  leaves = {path_string(p): x for p, x in _leaves(source)}
  problems, renewed = [], []

  def choose(key, fresh):
    name = path_string(key)
    top = name.split("/")[0]
    if top not in taken and not (towers == "both" and "/" not in name):
      return fresh
    if name not in leaves:
      problems.append(f"config.init.path={path}: has no {name}")
      return fresh
    old = leaves.pop(name)
    if name == _PIECES and shared is not None:
      if old.shape[1:] == fresh.shape[1:]:
        return _take_pieces(old, fresh, shared, config.data.tokenizer)
    elif old.shape == fresh.shape:
      return old
    new = _adapt(name, old, fresh, config)
    if new is None:
      problems.append(
        f"config.init.path={path}: {name} has shape {list(old.shape)}, and "
        f"config.model wants {list(fresh.shape)}"
      )
      return fresh
    renewed.append(name)
    return new

  params = jax.tree_util.tree_map_with_path(choose, random)
  problems += [
    f"config.init.path={path}: {name} has no place in config.model"
    for name in leaves
    if name.split("/")[0] in taken
  ]
  raise_problems(problems[:20])
  for name in renewed:
    logging.warning("init: %s is resampled to another shape, or new", name)
  return params


def check_embeddings(source: Source, path: str) -> None:
  """Makes sure that embeddings to train on were made by the weights at `path`.

  Reads these once, and drops them before training starts. Other sources pass.

  Raises:
    UserError: they were made by another model.
  """
  if isinstance(source, EmbeddedSource):
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
    sums[0] += float(((new - old) ** 2).sum())
    sums[1] += float((old**2).sum())
  return {
    part: (difference / max(norm, 1e-30)) ** 0.5
    for part, (difference, norm) in moved.items()
  }


def _load(path: str, scan: bool, mesh: Mesh) -> tuple[ConfigDict, Any]:
  """Returns the config, and parameters stacked as `scan` says."""
  config, params = saved.load(path, mesh, tokenizer=False)
  return config, restack(params, scan)


def _adapt(name: str, old: jax.Array, fresh: jax.Array, config: ConfigDict):
  """Returns `old` in the shape of `fresh`, or None if nothing is known."""
  old_host = np.asarray(old)
  if name == "image/position_embedding":
    side = config.model.image.image_size
    side //= sizes.resolve_image(config.model.image).patch_size
    new = resample_positions(old_host, side, config.init.positions)
  elif name == "image/patch_embedding/kernel":
    new = resample_patches(old_host, fresh.shape[0])
  elif name == "text/position_embedding":
    new = stretch_positions(old_host, fresh.shape[0])
  elif name == _PIECES:
    return fresh if old.shape[1] == fresh.shape[1] else None
  else:
    return None
  if new.shape != fresh.shape:
    return None
  return jax.device_put(np.asarray(new, fresh.dtype), fresh.sharding)


def _shared_pieces(trained, given) -> np.ndarray | None:
  """Returns [S, 2]: ids, in the config's tokenizer and in the weights'.

  None: the weights' tokenizer is not known, or it is the config's.
  """
  name = trained.get("tokenizer")
  if name is None or name == given.tokenizer:
    return None
  try:
    old = make_tokenizer(name)
  except UserError:  # Moved away since; the shape has to do.
    return None
  new = make_tokenizer(given.tokenizer)
  theirs, ours = old.vocabulary(), new.vocabulary()
  if theirs == ours:
    return None
  pairs = {ours[p]: theirs[p] for p in ours.keys() & theirs.keys()}
  # Whatever it is called.
  pairs[new.eos_id] = old.eos_id
  return np.array(sorted(pairs.items()))


def _take_pieces(old, fresh, shared: np.ndarray, tokenizer: str) -> jax.Array:
  """Returns WD: of `old`, VD, what both vocabularies know; the rest is new."""
  shared = shared[(shared < (fresh.shape[0], old.shape[0])).all(1)]
  rows = np.array(fresh)
  rows[shared[:, 0]] = np.asarray(old)[shared[:, 1]]
  logging.warning(
    "init: config.data.tokenizer=%r is not that of the weights: %d of %d "
    "embeddings are of pieces that both know, the others are new",
    tokenizer,
    len(shared),
    len(rows),
  )
  return jax.device_put(rows, fresh.sharding)


def _warn_of_differences(trained: ConfigDict, given: ConfigDict) -> None:
  """Says in which fields the preprocessing is not that of the weights."""
  if not trained.data:  # Published weights, without their tokenizer.
    return
  now, before = map(Preprocessing.of, (given, trained))
  for line in now.differences(before, RULES):
    logging.warning(
      "%s, as the weights of %s were trained with", line, given.init.path
    )


def _leaves(params: Any):
  return jax.tree_util.tree_leaves_with_path(params)
