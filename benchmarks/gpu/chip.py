"""Says what the GPU is, and what it reaches in a product and in a copy.

python -m benchmarks.gpu.chip [--tiny]

Of `benchmarks.gpu`, which starts it in a process of its own.
"""

import argparse
import os

import jax
import jax.numpy as jnp

from benchmarks.gpu import child, models, parts
from big_siglip.models import flops

_SIDE, _TINY_SIDE = 8_192, 256


def main() -> None:
  """Says one row."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=3.0, help="for each")
  parser.add_argument("--tiny", action="store_true")
  given = parser.parse_args()
  device = jax.devices()[0]
  if device.platform != "gpu" and not given.tiny:
    child.say(skipped=f"JAX {jax.__version__} sees no GPU, but {device}")
    return
  side = _TINY_SIDE if given.tiny else _SIDE
  # Not zeros, with which a GPU is faster than with data.
  keys = jax.random.split(jax.random.key(0))
  x, y = (jax.random.normal(k, (side, side), jnp.bfloat16) for k in keys)
  multiply = jax.jit(jnp.matmul)
  copy = jax.jit(lambda x: x + 1)
  product = child.summary(
    child.times(lambda: jax.block_until_ready(multiply(x, y)), given.seconds)
  )
  moved = child.summary(
    child.times(lambda: jax.block_until_ready(copy(x)), given.seconds)
  )
  configs = {
    name: models.config(name, 1, given.tiny, {}) for name in parts.NAMES
  }
  child.say(
    jax=jax.__version__,
    device=device.device_kind,
    devices=jax.device_count(),
    memory_bytes=(device.memory_stats() or {}).get("bytes_limit"),
    peak_flops=flops.peak_flops(device),
    product_flops=2 * side**3 / product["seconds"],
    copy_bytes=2 * x.nbytes / moved["seconds"],
    xla_flags=os.environ.get("XLA_FLAGS", ""),
    # Of a step: forward, and twice as much backward; no recomputation.
    flops_per_example={
      name: 3 * flops.flops_per_example(c.model) for name, c in configs.items()
    },
  )


if __name__ == "__main__":
  main()
