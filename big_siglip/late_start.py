"""Parameters whose optimizer state begins later than that of the others."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from big_siglip.parameter_rules import parameter_of
from big_siglip.sharding import path_string


def counted_from(
  inner: optax.GradientTransformation, began: Mapping[str, int]
) -> optax.GradientTransformation:
  """Returns `inner` with a count of its own for each parameter in `began`.

  Adam's bias correction and Adafactor's decay depend on how many gradients a
  moment has seen: with the count of older parameters the first update of a
  fresh one is wrong by (1 - b1) / sqrt(1 - b2), 0.45 with b2=0.95 and 3.2 with
  b2=0.999. So each parameter gets the update of an `inner` whose counts are
  less by what they were when the parameter's state began. The state keeps its
  layout and its counts; what is computed for nobody is left out by the
  compiler.

  Args:
    inner: keeps trees like the parameters and counts called `count`.
    began: path of a parameter -> the count when its state began.
  """
  if not began:
    return inner
  counts = sorted({0, *began.values()})

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    names = {path_string(path) for path, _ in leaves}
    results = [
      inner.update(grads, _counting_less(state, names, count), params)
      for count in counts
    ]

    def choose(path, *candidates):
      name = parameter_of(path_string(path), names)
      return candidates[counts.index(began.get(name, 0))]

    # What belongs to no parameter, the counts, is that of the oldest.
    return jax.tree_util.tree_map_with_path(choose, *results)

  return optax.GradientTransformation(inner.init, update)


def _counting_less(state: Any, names: set[str], count: int) -> Any:
  """Returns a state whose counts are less by `count`."""

  def shift(path, leaf):
    name = path_string(path)
    is_count = name.split("/")[-1] == "count" and not parameter_of(name, names)
    return leaf - count if is_count and count else leaf

  return jax.tree_util.tree_map_with_path(shift, state)
