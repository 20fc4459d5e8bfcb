"""Times the ring loss in tiles against the dense one, on one device.

python -m benchmarks.gpu.ring [--n=32768] [--seconds=2] [--tiny]

Of `benchmarks.gpu`, which starts it in a process of its own. Value and all four
gradients of the sigmoid loss. A ring of one device has nothing to send: what is
measured is the tiling that keeps the n x n matrix out of memory.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu import child, steps
from big_siglip import losses, sharding
from big_siglip.plan import hlo

WIDTH = 1_152  # Of So400m's embeddings.
TILES = (1_024, 4_096, 16_384)  # Rows; the whole batch is another.
_TINY_TILES = (8,)
_HEADROOM = 0.95


def programs(n: int, tiles: tuple[int, ...], mesh: Any) -> dict[str, Any]:
  """Returns {name: function of embeddings, scale and bias}, dense first."""
  ring = functools.partial(
    losses.ring_sigmoid_loss, mesh=mesh, axes=sharding.BATCH_AXES
  )
  made = {"dense": losses.sigmoid_loss, f"ring, {n} rows": ring}
  for tile in tiles:
    if tile < n:
      made[f"ring, {tile} rows"] = functools.partial(ring, chunk_size=tile)
  made |= {
    f"{name}, bfloat16": functools.partial(function, dtype="bfloat16")
    for name, function in list(made.items())[-1:]
  }
  return made


def main() -> None:
  """Says a row for each."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--n", type=int, default=32_768)
  parser.add_argument("--seconds", type=float, default=2.0, help="for each")
  parser.add_argument("--gib", type=float, help="memory; default: the GPU's")
  parser.add_argument("--tiny", action="store_true")
  given = parser.parse_args()
  n, width = (32, 8) if given.tiny else (given.n, WIDTH)
  limit = _HEADROOM * steps.memory(given.gib)
  device = jax.devices()[0]
  mesh = sharding.make_mesh(devices=[device])
  keys = jax.random.split(jax.random.key(0))
  pairs = [jax.random.normal(key, (n, width)) for key in keys]
  pairs = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in pairs]
  inputs = [
    *jax.device_put(pairs, sharding.batch_sharding(mesh)),
    *jax.device_put(
      (jnp.log(10.0), jnp.float32(-10.0)), sharding.replicated(mesh)
    ),
  ]
  reference = None
  for name, function in programs(
    n, _TINY_TILES if given.tiny else TILES, mesh
  ).items():
    row = {"loss": name, "n": n, "width": width}
    both = jax.jit(jax.value_and_grad(function, (0, 1, 2, 3)))
    compiled = both.lower(*inputs).compile()
    needed = hlo.peak_bytes(compiled.memory_analysis(), device.platform)
    if needed > limit:
      gib = needed / 2**30
      child.say(**row, peak_bytes=needed, skipped=f"needs {gib:.1f} GiB")
      continue
    gradient = compiled(*inputs)[1][0]
    reference = gradient if reference is None else reference
    apart = jnp.linalg.norm(gradient - reference) / jnp.linalg.norm(reference)
    taken = child.times(
      lambda run=compiled: jax.block_until_ready(run(*inputs)), given.seconds
    )
    figures = {**child.summary(taken), "peak_bytes": needed}
    child.say(**row, **figures, gradient_error=float(apart))


if __name__ == "__main__":
  main()
