"""An optimizer's state that goes on with another config."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from big_siglip import sharding
from big_siglip.models.stacking import restack_leaves
from big_siglip.parameter_rules import parameter_of
from big_siglip.sharding import path_string
from big_siglip.train_step import TrainState
from big_siglip.trained.fitting import Taken

# Adafactor keeps one number, never read, in place of a moment that it does
# without.
_NO_MOMENT = (1,)


def beginnings(
  params: Mapping[str, jax.Array], began: Mapping[str, int], scan: bool
) -> dict[str, list[int]]:
  """Returns the counts at which moments began, one a block, by parameter.

  Args:
    params: all parameters of a run by path.
    began: those that are younger; see `late_start.counted_from`.
    scan: how blocks are named in what is returned.
  """
  counts = {
    name: np.full(leaf.shape[:1] * ("/blocks/" in name), began.get(name, 0))
    for name, leaf in params.items()
  }
  restacked = restack_leaves(counts, scan)
  return {name: np.ravel(value).tolist() for name, value in restacked.items()}


def go_on_optimizing(
  old: Mapping[str, jax.Array],
  fresh: TrainState,
  taken: Taken,
  ages: Mapping[str, list[int]],
  *,
  same_rule: bool,
) -> tuple[Any, dict[str, int], Taken]:
  """Returns the optimizer's state, `began`, and whose moments went on.

  The moments of a parameter go on if it was trained by the same rule and is
  taken over as it was. Those of a resampled one start fresh: a gradient does
  not go the way of the resampling, neither in size (each of four times as many
  positions gets about a quarter) nor in sign (a cubic kernel and a
  pseudo-inverse would make second moments negative). The schedule goes on in
  any case.

  Args:
    old: leaves of the optimizer's state before, blocks stacked as in `fresh`.
    fresh: the new state, for its shapes and for what starts.
    taken: what became of the parameters.
    ages: of `beginnings`, for all parameters before.
    same_rule: whether `config.optimizer.name` is as it was.
  """
  leaves = sharding.flatten(fresh.opt_state)
  names = sharding.flatten(fresh.params).keys()
  owners = {path: parameter_of(path, names) for path in leaves}
  trained = list(dict.fromkeys(filter(None, owners.values())))
  kept = set()
  if same_rule:
    misfits = {
      owners[path]
      for path, leaf in leaves.items()
      if leaf.shape != _NO_MOMENT
      and (path not in old or old[path].shape != leaf.shape)
    }
    # Blocks of different ages cannot be stacked.
    kept = {n for n in taken.same if len(set(ages.get(n, ()))) == 1}
    kept = kept.intersection(trained) - misfits

  # The last count is the schedule's, those before it are the moments'.
  old_counts = [path for path in old if path.split("/")[-1] == "count"]
  *counts, schedule = [path for path, owner in owners.items() if not owner]
  sources = {path: path for path, owner in owners.items() if owner in kept}
  sources[schedule] = old_counts[-1]
  began = {}
  if kept:
    # Each from its own: no two may share a buffer that is donated.
    sources |= zip(counts, old_counts[:-1], strict=True)
    now = int(old[old_counts[0]])
    starts = {name: ages[name][0] if name in kept else now for name in trained}
    began = {name: count for name, count in starts.items() if count}

  def choose(key, leaf):
    source = old.get(sources.get(path_string(key)))
    if source is None or source.shape != leaf.shape:
      return leaf
    return jax.device_put(source.astype(leaf.dtype), leaf.sharding)

  state = jax.tree_util.tree_map_with_path(choose, fresh.opt_state)
  before = dict.fromkeys(parameter_of(path, ages) for path in old)
  return (
    state,
    began,
    Taken(
      same=sorted(kept),
      fresh=[name for name in trained if name not in kept],
      left=[name for name in before if name and name not in kept],
    ),
  )
