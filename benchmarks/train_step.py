"""Times our B/16 train step against a plain one, in one run.

python -m benchmarks.train_step [--json] [--batch_size=8] [--repetitions=9]

Both steps train SigLIP B/16 (224 pixels, 64 tokens, 32,000 pieces, 203 million
parameters) with AdamW in float32, from uint8 images and token ids. Ours is
`build.program` of configs/b16.py, with what is fastest on a CPU: no
recomputation, and the blocks unrolled (`model.scan=False`: a scan stacks all
parameters and copies each block's out and its gradients in). It computes all
metrics of training. The reference is benchmarks/plain.py. Neither clips.

The steps take turns, and the result is the median of the ratios of neighbours,
so that a machine whose speed drifts slows both. Needs 12 GB of memory.
"""

import argparse
from collections.abc import Callable
import json
import statistics
import time
from typing import Any

import jax
import numpy as np

from benchmarks import plain
from big_siglip import build, command_line
from big_siglip.data.faults import COUNTERS

OVERRIDES = {
  "mesh.fsdp": 1,
  "total_steps": 1_000,
  "model.dtype": "float32",
  "model.remat": "none",
  "model.scan": False,
  "optimizer.name": "adamw",
  "optimizer.mu_dtype": "float32",
  "optimizer.clip_norm": 0.0,
}


def our_program(batch_size: int) -> tuple[Callable, Callable]:
  """Returns init and step of configs/b16.py with `OVERRIDES`."""
  fields = {**OVERRIDES, "batch_size": batch_size}
  arguments = [f"--config.{field}={value}" for field, value in fields.items()]
  config = command_line.load_config("configs/b16.py", arguments)
  program = build.program(config, build.mesh(config))
  return program.init, program.step


def example_batch(batch_size: int) -> dict[str, jax.Array]:
  """Returns random images and texts."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (batch_size, 224, 224, 3), np.uint8)
  text = rng.integers(0, 32_000, (batch_size, 64), np.int32)
  faults = np.zeros((batch_size, len(COUNTERS)), np.int32)
  return jax.device_put({"image": image, "text": text, "faults": faults})


def measure(batch_size: int, repetitions: int) -> dict[str, Any]:
  """Returns the seconds of every step and the median ratio of neighbours."""
  batch = example_batch(batch_size)
  programs = {
    "ours": our_program(batch_size),
    "reference": plain.program(
      plain.Plain(), {name: batch[name] for name in ("image", "text")}
    ),
  }
  states = {name: init() for name, (init, _) in programs.items()}
  seconds = {name: [] for name in programs}
  for repetition in range(-2, repetitions):  # Two warm up.
    order = list(programs) if repetition % 2 else list(programs)[::-1]
    for name in order:
      start = time.perf_counter()
      states[name], metrics = programs[name][1](states[name], batch)
      jax.block_until_ready((states[name], metrics))
      if repetition >= 0:
        seconds[name].append(time.perf_counter() - start)
  pairs = zip(seconds["ours"], seconds["reference"], strict=True)
  return {
    "batch_size": batch_size,
    "seconds": seconds,
    "median": {name: statistics.median(s) for name, s in seconds.items()},
    "ratio": statistics.median(ours / reference for ours, reference in pairs),
  }


def main() -> None:
  """Prints a table, or JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--repetitions", type=int, default=9)
  arguments = parser.parse_args()
  result = measure(arguments.batch_size, arguments.repetitions)
  if arguments.json:
    print(json.dumps(result))
    return
  print(f"B/16 train step, batch {result['batch_size']}, float32:")
  print(f"{'':12}{'median s':>10}{'fastest s':>11}")
  for name, seconds in result["seconds"].items():
    print(f"{name:12}{result['median'][name]:10.3f}{min(seconds):11.3f}")
  print(f"ours / reference: {result['ratio']:.3f}")


if __name__ == "__main__":
  main()
