"""Times one train step in JAX: ours, or a plain one.

python -m benchmarks.gpu.steps --who=ours --model=b16 [--batch_size=512] ...

Of `benchmarks.gpu`, which starts it in a process of its own.
"""

import argparse
from collections.abc import Callable
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import plain
from benchmarks.gpu import child, models, parts
from big_siglip import sharding
from big_siglip.data.batch import Field, Fields
from big_siglip.data.faults import COUNTERS
from big_siglip.device_program import make_program
from big_siglip.errors import UserError
from big_siglip.plan import hlo

_FIRST = 64  # Examples a device, of the search for what fits.
_HEADROOM = 0.95  # Of the memory: what is in pieces cannot be used.
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
# Only the memory is asked for: nothing needs to be timed to choose kernels.
_UNTUNED = {"xla_gpu_autotune_level": 0}


def fields_of(config: Any) -> Fields:
  """Returns what a batch holds of a config's images and texts."""
  size = config.model.image.image_size
  return {
    "image": Field((size, size, 3), "uint8"),
    "text": Field((config.model.text.length,), "int32"),
  }


def make(
  who: str, config: Any, mesh: Any
) -> tuple[Callable, Any, dict[str, jax.Array]]:
  """Returns init, the lowered step, and a batch of noise.

  Args:
    who: "ours" or "plain".
    config: of both.
    mesh: of one device for "plain".
  """
  fields, rows = fields_of(config), config.batch_size
  split = sharding.batch_sharding(mesh)
  rng = np.random.default_rng(0)
  vocab = config.model.text.vocab_size
  image, text = fields["image"].shape, fields["text"].shape
  batch = {
    "image": rng.integers(0, 256, (rows, *image), np.uint8),
    "text": rng.integers(0, vocab, (rows, *text), np.int32),
  }
  if who == "ours":
    program = make_program(config, fields, mesh)
    init, step, state = program.init, program.step, program.abstract_state
    batch["faults"] = np.zeros((rows, len(COUNTERS)), np.int32)
  else:
    size, _ = models.towers(config.model)
    shape = plain.Plain(
      size.width,
      size.depth,
      size.num_heads,
      size.mlp_dim,
      size.patch_size or 0,
      vocab,
      dtype=jnp.dtype(config.model.dtype),
      remat=config.model.remat == "full",
      scan=config.model.scan,
    )
    init, step = plain.program(shape, batch)
    state = jax.eval_shape(init)
  abstract = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
    for name, x in batch.items()
  }
  return init, step.lower(state, abstract), jax.device_put(batch, split)


def peak(who: str, config: Any, mesh: Any) -> int:
  """Returns the bytes that a step has on a device at once."""
  _, lowered, _ = make(who, config, mesh)
  on_gpu = mesh.devices.flat[0].platform == "gpu"
  compiled = lowered.compile(_UNTUNED if on_gpu else None)
  return hlo.peak_bytes(compiled.memory_analysis(), "gpu" if on_gpu else "cpu")


def largest(peak_of: Callable[[int], int], limit: float, most: int) -> int:
  """Returns the largest power of two of examples whose step should fit.

  Memory grows in a straight line with the batch, nearly: two sizes say where it
  meets the limit.

  Args:
    peak_of: examples -> bytes.
    limit: bytes.
    most: examples.
  """
  first = min(_FIRST, most)
  low, high = peak_of(first), peak_of(2 * first)
  each = max((high - low) / first, 1.0)
  fitting = first + (limit - low) / each
  size = first
  while 2 * size <= min(fitting, most):
    size *= 2
  while size > 1 and size > fitting:
    size //= 2
  return size


def timed(
  who: str, config: Any, mesh: Any, seconds: float
) -> dict[str, Any] | None:
  """Returns the figures of a row; None: it needs more memory than there is."""
  try:
    init, lowered, batch = make(who, config, mesh)
    before = time.perf_counter()
    compiled = lowered.compile()
    took = time.perf_counter() - before
    stats = compiled.memory_analysis()
    state = init()

    def run():
      nonlocal state
      state, metrics = compiled(state, batch)
      jax.block_until_ready((state, metrics))
      return metrics

    loss = float(run()["loss"])
    taken = child.times(run, seconds)
  except jax.errors.JaxRuntimeError as error:
    if _OUT_OF_MEMORY not in str(error):
      raise
    return None
  platform = mesh.devices.flat[0].platform
  return {
    **child.summary(taken),
    "compile_seconds": took,
    "peak_bytes": hlo.peak_bytes(stats, platform),
    "loss": loss,
  }


def main() -> None:
  """Says one row."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--who", choices=("ours", "plain"), required=True)
  parser.add_argument("--model", choices=parts.NAMES, required=True)
  parser.add_argument("--batch_size", type=int, help="default: what fits")
  parser.add_argument("--most", type=int, default=4_096, help="of what fits")
  parser.add_argument("--gib", type=float, help="memory; default: the GPU's")
  parser.add_argument("--all_devices", action="store_true", help="not one")
  parser.add_argument("--seconds", type=float, default=10.0)
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE")
  given = parser.parse_args()
  devices = jax.devices() if given.all_devices else jax.devices()[:1]
  mesh = sharding.make_mesh(devices=devices)
  changes = dict(change.split("=", 1) for change in given.set)

  def config(batch_size):
    return models.config(given.model, batch_size, given.tiny, changes)

  row = {"model": given.model, "who": given.who, "devices": len(devices)}
  try:
    row["model"] = models.title(config(1).model)
    size = given.batch_size
    if size is None:
      limit = _HEADROOM * memory(given.gib)
      size = len(devices) * largest(
        lambda n: peak(given.who, config(n * len(devices)), mesh),
        limit,
        given.most,
      )
    for batch_size in child.halves(size):
      found = timed(given.who, config(batch_size), mesh, given.seconds)
      if found:
        child.say(**row, batch_size=batch_size, **found)
        return
  except UserError as error:
    child.say(**row, skipped=str(error))
    return
  child.say(**row, skipped="one example does not fit into the memory")


def memory(gib: float | None) -> float:
  """Returns the bytes that JAX may take of the first device.

  Args:
    gib: what to say in its place.
  """
  if gib is not None:
    return gib * 2**30
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get("bytes_limit", 2**30)


if __name__ == "__main__":
  main()
