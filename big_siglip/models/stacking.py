"""Blocks of a tower stacked (`config.model.scan`), or one by one."""

from collections.abc import Mapping
import re
from typing import Any

from flax import traverse_util
import jax.numpy as jnp


def restack(params: Any, scan: bool) -> Any:
  """Returns the parameters as `config.model.scan=scan` has them.

  Args:
    params: of a `SigLIP`, stacked or not, perhaps without one of the towers.
    scan: True for "blocks", False for "block_0", "block_1", ...
  """
  leaves = restack_leaves(traverse_util.flatten_dict(params, sep="/"), scan)
  return traverse_util.unflatten_dict(leaves, sep="/")


def restack_leaves(leaves: Mapping[str, Any], scan: bool) -> dict[str, Any]:
  """Does what `restack` does, for leaves by their paths.

  They may be of another tree that holds the parameters' paths, such as an
  optimizer's state, and need not be of all blocks.
  """
  if not scan:
    return _unstack(leaves)
  stacked: dict[str, Any] = {}
  parts: dict[str, dict[int, Any]] = {}
  for path, leaf in leaves.items():
    match = re.fullmatch(r"(.*/)block_(\d+)(/.*)", path)
    if match:
      whole = f"{match[1]}blocks{match[3]}"
      parts.setdefault(whole, {})[int(match[2])] = leaf
    else:
      stacked[path] = leaf
  for path, blocks in parts.items():
    stacked[path] = jnp.stack([blocks[index] for index in sorted(blocks)])
  return stacked


def _unstack(leaves: Mapping[str, Any]) -> dict[str, Any]:
  single = {}
  for path, leaf in leaves.items():
    head, found, tail = path.partition("/blocks/")
    if not found:
      single[path] = leaf
      continue
    for index in range(len(leaf)):
      single[f"{head}/block_{index}/{tail}"] = leaf[index]
  return single
