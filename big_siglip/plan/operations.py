"""Counts the operations of a traced program, recomputation and all.

Unlike a compiler's own count it knows how often a scan turns, and it is the
same for every chip.
"""

from collections.abc import Iterator
import math
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def executed_flops(traced: Any) -> float:
  """Returns the FLOPs of all matrix products and convolutions that are needed.

  Of a program for several devices, those of all.

  Args:
    traced: `jax.jit(f).trace(...)`.
  """
  return _flops(_needed(traced), everywhere=True)


def kernel_flops(traced: Any) -> float:
  """Returns those of `executed_flops` within Pallas kernels.

  Args:
    traced: `jax.jit(f).trace(...)`.
  """
  return _flops(_needed(traced), everywhere=False)


def _needed(traced):
  """Returns a program without what nobody asks for: gradients leave such."""
  jaxpr = traced.jaxpr.jaxpr
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _flops(jaxpr: core.Jaxpr, everywhere: bool) -> float:
  """Returns the FLOPs of a program's products, or of those in its kernels.

  A multiply-add is two. Products within a `shard_map` count once for each
  device that runs them, those of a Pallas kernel once for each block. Of
  branches the dearest counts; a loop whose turns nobody knows counts once.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
      total += _product(equation) * everywhere
    elif name == "conv_general_dilated":
      total += _convolution(equation) * everywhere
    elif name == "cond":
      branches = params["branches"]
      total += max(_flops(branch.jaxpr, everywhere) for branch in branches)
    else:
      counted = everywhere or name == "pallas_call"
      inner = sum(_flops(part, counted) for part in _within(params))
      total += inner * _times(name, params)
  return total


def _product(equation: Any) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: Any) -> float:
  numbers = equation.params["dimension_numbers"]
  kernel = equation.invars[1].aval.shape
  depth = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
  return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _times(name: str, params: dict[str, Any]) -> int:
  if name == "scan":
    return params["length"]
  if name == "shard_map":
    sizes = params["mesh"].shape
    return math.prod(sizes[x] for x in params["newly_manual_axes"])
  if name == "pallas_call":
    return math.prod(params["grid_mapping"].grid)
  return 1


def _within(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  for value in params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      if isinstance(one, core.ClosedJaxpr):
        yield one.jaxpr
      elif isinstance(one, core.Jaxpr):
        yield one
