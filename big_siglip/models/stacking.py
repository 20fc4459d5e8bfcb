"""Blocks of a tower stacked (`config.model.scan`), or one by one."""

from typing import Any

import jax
import numpy as np


def restack(params: Any, scan: bool) -> Any:
  """Returns the parameters as `config.model.scan=scan` has them.

  Args:
    params: of a `SigLIP`, stacked or not, perhaps without one of the towers.
    scan: True for "blocks", False for "block_0", "block_1", ...
  """
  params = dict(params)
  for tower in params.keys() & {"image", "text"}:
    encoder = dict(params[tower]["encoder"])
    if ("blocks" in encoder) != scan:
      encoder = (_stack if scan else _unstack)(encoder)
    params[tower] = {**params[tower], "encoder": encoder}
  return params


def _stack(encoder: dict[str, Any]) -> dict[str, Any]:
  count = sum(name.startswith("block_") for name in encoder)
  blocks = [encoder.pop(f"block_{index}") for index in range(count)]
  return {**encoder, "blocks": jax.tree.map(lambda *x: np.stack(x), *blocks)}


def _unstack(encoder: dict[str, Any]) -> dict[str, Any]:
  blocks = encoder.pop("blocks")
  for index in range(len(jax.tree.leaves(blocks)[0])):
    encoder[f"block_{index}"] = jax.tree.map(lambda x, i=index: x[i], blocks)
  return encoder
