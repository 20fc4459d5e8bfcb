"""What a decoder's loss costs on a CPU: chunks beside all logits at once.

python -m benchmarks.token_loss [--rounds=5]

Value and gradients of 6,144 tokens over 16,000 pieces, 128 numbers wide, in
float32. The ways are taken in turns; the least processor time of each counts.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import optax

from big_siglip.losses import token_cross_entropy

EXAMPLES, LENGTH, WIDTH, VOCABULARY = 96, 64, 128, 16_000
CHUNK = 256


def whole(hidden, kernel, bias, targets, real):
  """Returns the sum of the losses, of logits that are all there at once."""
  losses = optax.softmax_cross_entropy_with_integer_labels(
    hidden @ kernel + bias, targets
  )
  return jnp.where(real, losses, 0).sum()


def chunked(hidden, kernel, bias, targets, real):
  """Returns the same, a chunk at a time."""
  return token_cross_entropy(
    hidden, kernel, bias, targets, real, chunk_size=CHUNK
  ).loss.sum()


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=5)
  rounds = parser.parse_args().rounds
  keys = jax.random.split(jax.random.key(0), 4)
  shape = EXAMPLES, LENGTH
  hidden = jax.random.normal(keys[0], (*shape, WIDTH))
  kernel = jax.random.normal(keys[1], (WIDTH, VOCABULARY)) * WIDTH**-0.5
  targets = jax.random.randint(keys[2], shape, 0, VOCABULARY)
  order = jax.random.uniform(keys[3], shape)
  ways, taken = {}, {}
  for name, function, share in (
    ("all logits at once", whole, 1.0),
    (f"chunks of {CHUNK}, every token a target", chunked, 1.0),
    ("the same, 30 % of them", chunked, 0.3),
    ("the same, 20 % of them", chunked, 0.2),
  ):
    given = hidden, kernel, jnp.zeros(VOCABULARY), targets, order < share
    step = jax.jit(jax.value_and_grad(function, (0, 1, 2)))
    compiled = step.lower(*given).compile()
    jax.block_until_ready(compiled(*given))
    ways[name], taken[name] = (compiled, given), []
  for _ in range(rounds):
    for name, (compiled, given) in ways.items():
      start = time.process_time()
      jax.block_until_ready(compiled(*given))
      taken[name].append(time.process_time() - start)
  print("| | seconds of CPU | temporary memory |\n|---|---|---|")
  for name, (compiled, _) in ways.items():
    memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
    print(f"| {name} | {min(taken[name]):.2f} | {memory:,.0f} MB |")


if __name__ == "__main__":
  main()
