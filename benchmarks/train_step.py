"""Times our B/16 train step against a plain one, in one run.

python -m benchmarks.train_step [--json] [--batch_size=8] [--repetitions=9]

Both steps train SigLIP B/16 (224 pixels, 64 tokens, 32,000 pieces, 203 million
parameters) with AdamW in float32, from uint8 images and token ids. Ours is
`build.program` of configs/b16.py, with what is fastest on a CPU: no
recomputation, and the blocks unrolled (`model.scan=False`: a scan stacks all
parameters and copies each block's out and its gradients in). It computes all
metrics of training. The reference is what one writes in an afternoon: linen's
attention, norms and dense layers with their defaults, the dense loss,
optax.adamw, and no metric but the loss. Neither clips.

The steps take turns, and the result is the median of the ratios of neighbours,
so that a machine whose speed drifts slows both. Needs 12 GB of memory.
"""

import argparse
from collections.abc import Callable
import functools
import json
import statistics
import time
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_siglip import build, command_line
from big_siglip.data.faults import COUNTERS

WIDTH, DEPTH, HEADS, MLP_DIM = 768, 12, 12, 3072
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


class ReferenceTower(nn.Module):
  """Plain pre-norm transformer; BLD -> BLD."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies 12 blocks and a norm."""
    for _ in range(DEPTH):
      y = nn.LayerNorm()(x)
      x = x + nn.MultiHeadDotProductAttention(HEADS)(y, y)
      y = nn.LayerNorm()(x)
      x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(MLP_DIM)(y)))
    return nn.LayerNorm()(x)


class ReferenceModel(nn.Module):
  """Plain SigLIP B/16; the same operations and parameter count as ours."""

  @nn.compact
  def __call__(self, image: jax.Array, text: jax.Array) -> tuple:
    """Embeds uint8 images BHW3 and token ids BL."""
    image = image.astype(jnp.float32) / 127.5 - 1
    x = nn.Conv(WIDTH, (16, 16), strides=(16, 16), padding="VALID")(image)
    x = x.reshape(len(x), -1, WIDTH)
    x = ReferenceTower()(x + self._positions("image_positions", x))
    probe = self.param("probe", nn.initializers.normal(), (1, 1, WIDTH))
    probe = jnp.tile(probe, (len(x), 1, 1))
    x = nn.MultiHeadDotProductAttention(HEADS)(probe, x)
    y = nn.LayerNorm()(x)
    x = (x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(MLP_DIM)(y))))[:, 0]

    z = nn.Embed(32_000, WIDTH)(text)
    z = ReferenceTower()(z + self._positions("text_positions", z))
    z = nn.Dense(WIDTH)(z[:, -1])

    scale = self.param("scale", nn.initializers.constant(np.log(10.0)), ())
    bias = self.param("bias", nn.initializers.constant(-10.0), ())
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    return x @ z.T * jnp.exp(scale) + bias

  def _positions(self, name: str, x: jax.Array) -> jax.Array:
    return self.param(name, nn.initializers.normal(), (1, *x.shape[1:]))


def reference_program(batch: Any) -> tuple[Callable, Callable]:
  """Returns init and step of the plain program."""
  model = ReferenceModel()
  optimizer = optax.adamw(1e-3, b2=0.95, weight_decay=0.1)

  def init():
    params = model.init(jax.random.key(0), batch["image"], batch["text"])
    return params, optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, batch):
    params, opt_state = state

    def loss_of(params):
      logits = model.apply(params, batch["image"], batch["text"])
      signs = 2 * jnp.eye(len(logits)) - 1
      return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), {"loss": loss}

  return jax.jit(init), step


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
    "reference": reference_program(batch),
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
