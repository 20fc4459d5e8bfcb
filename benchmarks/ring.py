"""Times the ring loss against the dense one on simulated devices, in one run.

python -m benchmarks.ring [--json] [--n=8192] [--width=1152] [--devices=8]

Value and all four gradients of the sigmoid loss (or --loss=softmax) for n pairs
in float32, embeddings split over the devices. The dense loss is split by XLA's
partitioner. The two take turns, and the ratio is the median of those of
neighbours. Prints the programs' temporary memory a device too.
"""

import argparse
import functools
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_siglip import losses, sharding


def programs(loss: str, n: int, width: int, mesh: Any) -> dict[str, Any]:
  """Returns {"ring", "dense"}: compiled value and gradients."""
  functions = {
    "ring": functools.partial(
      getattr(losses, f"ring_{loss}_loss"), mesh=mesh, axes=sharding.BATCH_AXES
    ),
    "dense": getattr(losses, f"{loss}_loss"),
  }
  split = sharding.batch_sharding(mesh)
  embeddings = jax.ShapeDtypeStruct((n, width), jnp.float32, sharding=split)
  scalar = jax.ShapeDtypeStruct(
    (), jnp.float32, sharding=sharding.replicated(mesh)
  )
  return {
    name: jax.jit(jax.value_and_grad(function, (0, 1, 2, 3)))
    .lower(embeddings, embeddings, scalar, scalar)
    .compile()
    for name, function in functions.items()
  }


def measure(loss: str, n: int, width: int, repetitions: int) -> dict[str, Any]:
  """Returns seconds of every call, median ratio and temporary bytes."""
  mesh = sharding.make_mesh()
  compiled = programs(loss, n, width, mesh)
  keys = jax.random.split(jax.random.key(0))
  pairs = [jax.random.normal(key, (n, width)) for key in keys]
  pairs = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in pairs]
  embeddings = jax.device_put(pairs, sharding.batch_sharding(mesh))
  scalars = jax.device_put(
    (jnp.log(10.0), jnp.float32(-10.0)), sharding.replicated(mesh)
  )
  results, seconds = {}, {name: [] for name in compiled}
  for repetition in range(-1, repetitions):  # One warms up.
    order = list(compiled) if repetition % 2 else list(compiled)[::-1]
    for name in order:
      start = time.perf_counter()
      results[name] = jax.block_until_ready(
        compiled[name](*embeddings, *scalars)
      )
      if repetition >= 0:
        seconds[name].append(time.perf_counter() - start)
  ring, dense = results["ring"][1][0], results["dense"][1][0]
  error = np.linalg.norm(ring - dense) / np.linalg.norm(dense)
  ratios = zip(seconds["ring"], seconds["dense"], strict=True)
  return {
    "loss": loss,
    "n": n,
    "width": width,
    "devices": mesh.size,
    "seconds": {k: statistics.median(s) for k, s in seconds.items()},
    "temporary_bytes": {
      name: program.memory_analysis().temp_size_in_bytes
      for name, program in compiled.items()
    },
    "ratio": statistics.median(a / b for a, b in ratios),
    "gradient_error": float(error),
  }


def main() -> None:
  """Prints a table, or JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--loss", choices=("sigmoid", "softmax"))
  parser.add_argument("--n", type=int, default=8192)
  parser.add_argument("--width", type=int, default=1152)
  parser.add_argument("--devices", type=int, default=8)
  parser.add_argument("--repetitions", type=int, default=5)
  arguments = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", arguments.devices)
  for loss in [arguments.loss] if arguments.loss else ["sigmoid", "softmax"]:
    result = measure(loss, arguments.n, arguments.width, arguments.repetitions)
    if arguments.json:
      print(json.dumps(result))
      continue
    print(
      f"{loss}, {result['n']:,} pairs of width {result['width']:,}, "
      f"{result['devices']} simulated devices:"
    )
    print(f"{'':8}{'median s':>10}{'temporary MiB a device':>25}")
    for name, seconds in result["seconds"].items():
      memory = result["temporary_bytes"][name] / 2**20
      print(f"{name:8}{seconds:10.3f}{memory:25.1f}")
    print(
      f"ring / dense: {result['ratio']:.3f}; gradients differ by "
      f"{result['gradient_error']:.1e}\n"
    )


if __name__ == "__main__":
  main()
