"""Parameters of other weights, brought to the shapes that a config wants.

Shape letters: V and W pieces of two vocabularies, D width, S shared pieces.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np

from big_siglip import sharding
from big_siglip.data.preprocessing import Preprocessing, RULES
from big_siglip.data.text import make_tokenizer
from big_siglip.errors import UserError
from big_siglip.models.resampling import (
  resample_patches,
  resample_positions,
  stretch_positions,
)
from big_siglip.schema import sizes
from big_siglip.sharding import path_string

_PIECES = "text/token_embedding/embedding"


@dataclasses.dataclass(frozen=True)
class Fit:
  """How parameters of other weights take the shapes that a config wants.

  Attributes:
    config: the config.
    shared: [S, 2] ids of pieces, in the config's tokenizer and in the
      weights'; None: all, in the same order.
  """

  config: ConfigDict
  shared: np.ndarray | None = None

  def __call__(
    self, name: str, old: jax.Array, fresh: jax.Array
  ) -> jax.Array | None:
    """Returns `old` itself if it fits, a resampled one, or None.

    Args:
      name: the parameter's path.
      old: the weights' own.
      fresh: what a random start has in its place.
    """
    if name == _PIECES and self.shared is not None:
      if old.shape[1:] == fresh.shape[1:]:
        return _take_pieces(old, fresh, self.shared, self.config.data.tokenizer)
    elif old.shape == fresh.shape:
      return old
    return _adapt(name, old, fresh, self.config)


@dataclasses.dataclass(frozen=True)
class Taken:
  """What became of parameters, by their paths.

  Attributes:
    same: taken over as they were.
    resampled: taken over in another shape.
    fresh: had no place in the weights.
    left: have no place in the config.
    misfits: a line for each that nobody knows how to resample.
  """

  same: list[str] = dataclasses.field(default_factory=list)
  resampled: list[str] = dataclasses.field(default_factory=list)
  fresh: list[str] = dataclasses.field(default_factory=list)
  left: list[str] = dataclasses.field(default_factory=list)
  misfits: list[str] = dataclasses.field(default_factory=list)


def take(
  old: Mapping[str, jax.Array], fresh: Any, fit: Fit
) -> tuple[Any, Taken]:
  """Returns the tree of `fresh` with what there is of it in `old`.

  Args:
    old: the weights' parameters by path.
    fresh: the parameters of a random start, on their devices.
    fit: how shapes are changed.
  """
  taken = Taken()

  def choose(key, leaf):
    name = path_string(key)
    if name not in old:
      taken.fresh.append(name)
      return leaf
    new = fit(name, old[name], leaf)
    if new is None:
      taken.misfits.append(
        f"config.init.path={fit.config.init.path}: {name} has shape "
        f"{list(old[name].shape)}, and config.model wants {list(leaf.shape)}"
      )
      return leaf
    (taken.same if new is old[name] else taken.resampled).append(name)
    return jax.device_put(new.astype(leaf.dtype), leaf.sharding)

  tree = jax.tree_util.tree_map_with_path(choose, fresh)
  taken.left.extend(old.keys() - sharding.flatten(fresh).keys())
  return tree, taken


def is_wanted(config: ConfigDict) -> Callable[[str], bool]:
  """Returns which parameters `config.init` asks for, by their paths.

  With the whole state of a run both towers go on, whatever `towers` says: a
  run that began with one tower trains for longer by the same config.
  """
  if config.init.towers == "both" or config.init.state == "all":
    return lambda name: True
  return lambda name: name.split("/")[0] == config.init.towers


def check_towers(config: ConfigDict, model: ConfigDict) -> None:
  """Makes sure that weights have the towers that `config.init` asks for.

  Args:
    config: of a run that starts from them.
    model: `config.model` of the weights.

  Raises:
    UserError: they are an image tower alone, and more is asked for.
  """
  path, towers = config.init.path, config.init.towers
  if not sizes.has_text_tower(model) and towers != "image":
    raise UserError(
      f"config.init.towers={towers!r}: must be 'image', as in configs/lit.py: "
      f"{path} (init.path) is an image tower alone"
    )
  pooling = config.model.image.pooling
  if towers != "text" and model.image.pooling == "none" and pooling != "gap":
    raise UserError(
      f"config.model.image.pooling={pooling!r}: must be 'gap', the mean of the "
      f"tokens, since {path} (init.path) has no pool"
    )


def of_model(name: str) -> bool:
  """Returns whether a parameter is one that all weights have."""
  return name.split("/")[0] in ("image", "text") or "/" not in name


def fit_to(config: ConfigDict, data: Mapping[str, Any]) -> Fit:
  """Returns how weights of the preprocessing `data` are made to fit."""
  has_text = is_wanted(config)("text/")
  return Fit(config, _shared_pieces(data, config.data) if has_text else None)


def differences(trained: ConfigDict, given: ConfigDict) -> list[str]:
  """Returns a line for each way in which the weights saw other inputs.

  Args:
    trained: the config of the weights.
    given: that of the run that starts from them.
  """
  # Published weights without a tokenizer say nothing of texts.
  data = {**given.data, **trained.data}
  known = ConfigDict({"model": trained.model, "data": data})
  now, before = map(Preprocessing.of, (given, known))
  return [
    f"{line}, as the weights of {given.init.path} were trained with"
    for line in now.differences(before, RULES)
  ]


def warn_of_differences(trained: ConfigDict, given: ConfigDict) -> None:
  """Says in which fields the preprocessing is not that of the weights."""
  for line in differences(trained, given):
    logging.warning("%s", line)


def _adapt(name: str, old: jax.Array, fresh: jax.Array, config: ConfigDict):
  """Returns `old` in the shape of `fresh`, or None if nothing is known."""
  old_host = _host(old, fresh)
  if name == "image/position_embedding":
    side = config.model.image.image_size
    side //= sizes.resolve_image(config.model.image).patch_size
    new = resample_positions(
      old_host,
      side,
      config.init.positions,
      class_token=config.model.image.pooling == "cls",
    )
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
  rows = np.array(_host(fresh, fresh))
  rows[shared[:, 0]] = _host(old, fresh)[shared[:, 1]]
  logging.warning(
    "init: config.data.tokenizer=%r is not that of the weights: %d of %d "
    "embeddings are of pieces that both know, the others are new",
    tokenizer,
    len(shared),
    len(rows),
  )
  return jax.device_put(rows, fresh.sharding)


def _host(x: jax.Array, like: jax.Array) -> np.ndarray:
  """Returns all of an array on the devices of `like`, whoever holds it."""
  whole = sharding.replicated(like.sharding.mesh)
  return np.asarray(jax.device_put(x, whole))
