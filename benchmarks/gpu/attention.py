"""Times attention, forward and backward, by each implementation for GPUs.

python -m benchmarks.gpu.attention [--seconds=2] [--tiny]

Of `benchmarks.gpu`, which starts it in a process of its own. Also says how far
bfloat16 is from plain products in float32, and checks nothing else.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu import child
from big_siglip.errors import UserError
from big_siglip.models.attention import attention

BACKENDS = ("xla", "heads_first", "cudnn")
# (what has it, tokens, heads, size of a head, whether keys are masked).
SHAPES = (
  ("B/16, 224 pixels", 196, 12, 64, False),
  ("B, text", 64, 12, 64, False),
  ("So400m/14, 224 pixels", 256, 16, 72, False),
  ("So400m, text", 64, 16, 72, False),
  ("So400m/14, 384 pixels", 729, 16, 72, False),
  ("L/16, 512 pixels", 1_024, 16, 64, False),
  ("So400m/16, any shape", 256, 16, 72, True),
)
_TINY = (("tiny", 24, 2, 8, False), ("tiny, masked", 24, 2, 8, True))
_TOKENS = 2**16  # Of a batch.
_CALLS = 10  # Between two looks at the clock: one alone is short.


def both_ways(backend: str, mask: jax.Array | None) -> Any:
  """Returns a function of query, key, value and what comes back.

  Args:
    backend: see `attention`.
    mask: the same.
  """
  attend = functools.partial(attention, backend=backend, mask=mask)

  @jax.jit
  def run(query, key, value, cotangent):
    attended, vjp = jax.vjp(attend, query, key, value)
    return attended, *vjp(cotangent)

  return run


def error(found: Any, exact: Any) -> float:
  """Returns the largest relative error, by norm, of value and gradients."""

  def norm(x):
    return float(jnp.linalg.norm(x.astype(jnp.float32).ravel()))

  pairs = zip(found, exact, strict=True)
  return max(norm(a - b) / norm(b) for a, b in pairs)


def rows(shape: Any, seconds: float, tiny: bool) -> None:
  """Says a row for each implementation.

  Args:
    shape: of `SHAPES`.
    seconds: for each.
    tiny: two sequences alone.
  """
  name, tokens, heads, size, masked = shape
  batch = 2 if tiny else max(_TOKENS // tokens, 1)
  keys = jax.random.split(jax.random.key(0), 4)
  exact = [jax.random.normal(k, (batch, tokens, heads, size)) for k in keys]
  mask = None
  if masked:
    lengths = jnp.arange(batch) % (tokens // 2) + tokens // 2
    mask = jnp.arange(tokens)[None] < lengths[:, None]
  few = [x[:2] for x in exact]
  wanted = both_ways("xla", None if mask is None else mask[:2])(*few)
  inputs = [x.astype(jnp.bfloat16) for x in exact]
  # Two products forward and four backward, of two operations each.
  work = 6 * 2 * batch * tokens**2 * heads * size
  for backend in BACKENDS:
    row = {"shape": name, "tokens": tokens, "heads": heads, "size": size}
    row |= {"batch_size": batch, "masked": masked, "backend": backend}
    try:
      with child.refusals(**row):
        run = both_ways(backend, mask)
        found = run(*inputs)
        apart = error([x[:2] for x in found], wanted)
        taken = child.times(lambda run=run: _calls(run, inputs), seconds)
        figures = child.summary([t / _CALLS for t in taken])
        rate = work / figures["seconds"]
        child.say(**row, **figures, flops_per_second=rate, error=apart)
    except UserError as refusal:
      child.say(**row, skipped=str(refusal))


def _calls(run, inputs):
  """Waits for the last of several calls."""
  for _ in range(_CALLS - 1):
    run(*inputs)
  jax.block_until_ready(run(*inputs))


def main() -> None:
  """Says all rows."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=1.0, help="for each")
  parser.add_argument("--tiny", action="store_true")
  given = parser.parse_args()
  for shape in _TINY if given.tiny else SHAPES:
    rows(shape, given.seconds, given.tiny)


if __name__ == "__main__":
  main()
