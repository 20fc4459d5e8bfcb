"""What the TPU compiler says of the losses and of whole steps; needs no TPU.

python -m benchmarks.tpu [losses] [steps] [attention]

Prints the tables of docs/performance.md. The compiler (libtpu, of the extra
`tpu`) compiles for chips that are not there, says the peak memory a chip, and
writes an estimate of the cycles beside every operation (`hlo.costs`). Whole
steps take one to four minutes each to compile.

The reference of the steps is big_vision's model and update function, compiled
for the same chips: batch 32,768, 224 pixels, 64 tokens, AdamW.
"""

import functools
import sys
import time

import jax
import jax.numpy as jnp

from big_siglip import command_line, losses, sharding
from big_siglip.plan import hlo, plan, topologies

TOPOLOGY = "v5e:16x16"
# {config: (million cycles, peak GB)} of big_vision.
REFERENCE = {"so400m": (2_932, 16.1), "b16": (477, 1.5)}
_SHORT = {"model.attention": "short"}
STEPS = (
  ("so400m", {"mesh.fsdp": 128, **_SHORT}),
  ("so400m", {"mesh.fsdp": 128}),
  ("so400m", {"mesh.fsdp": 128, "model.slice_tokens": 10**6, **_SHORT}),  # All.
  ("so400m", _SHORT),
  ("b16", _SHORT),
  ("b16", {}),
  ("b16", {"model.scan": True, "model.remat": "full", **_SHORT}),
)


def loss_table() -> None:
  """Value and all gradients at 128 pairs of width 1,152 a chip, float32."""
  print("| loss | topology | peak MB a chip | M cycles | collectives |")
  print("|---|---|---|---|---|")
  ring = losses.ring_sigmoid_loss
  for name, function, options in (
    ("ring sigmoid", ring, {}),
    ("ring sigmoid, bfloat16", ring, {"dtype": "bfloat16"}),
    ("ring softmax", losses.ring_softmax_loss, {}),
    ("dense sigmoid", losses.sigmoid_loss, None),
  ):
    for topology in ("v5e:4x4", "v5e:8x8", "v5e:16x16"):
      devices, _ = topologies.describe(topology)
      mesh = sharding.make_mesh(devices=devices)
      if options is not None:
        axes = sharding.BATCH_AXES
        placed = functools.partial(function, mesh=mesh, axes=axes, **options)
      else:
        placed = function
      compiled = compile_loss(placed, mesh)
      costs = hlo.costs(compiled.as_text())
      peak = compiled.memory_analysis().peak_memory_in_bytes
      kinds = ", ".join(
        f"{kind} {count}x" for kind, (count, _) in costs.collectives.items()
      )
      print(
        f"| {name} | {topology} | {peak / 1e6:.2f} | {costs.cycles / 1e6:.2f} "
        f"| {kinds} |",
        flush=True,
      )


def compile_loss(function, mesh, rows: int = 128, width: int = 1152):
  """Returns the compiled value and gradients, `rows` pairs a chip."""
  split = sharding.batch_sharding(mesh)
  n = rows * mesh.size
  embeddings = jax.ShapeDtypeStruct((n, width), jnp.float32, sharding=split)
  scalar = jax.ShapeDtypeStruct(
    (), jnp.float32, sharding=sharding.replicated(mesh)
  )
  # Also the gradients come out split: a dense loss would leave them whole.
  out = (
    sharding.replicated(mesh),
    (split, split, sharding.replicated(mesh), sharding.replicated(mesh)),
  )
  step = jax.jit(jax.value_and_grad(function, (0, 1, 2, 3)), out_shardings=out)
  return step.lower(embeddings, embeddings, scalar, scalar).compile()


def step_table() -> None:
  """Whole train steps of the configs, with AdamW."""
  print(
    "| config | changes | peak GB a chip | M cycles | to big_vision's "
    "| kernels, at least M cycles | MFU | compiled in |"
  )
  print("|---|---|---|---|---|---|---|---|")
  for name, changes in STEPS:
    fields = {"optimizer.name": "adamw", **changes}
    config = command_line.load_config(
      f"configs/{name}.py", [f"--config.{k}={v}" for k, v in fields.items()]
    )
    start = time.perf_counter()
    made = plan.make_plan(config, TOPOLOGY)
    said = " ".join(f"{k}={v}" for k, v in changes.items()) or "none"
    row = [name, said, f"{made.peak_hbm_bytes_per_chip / 1e9:.2f}"]
    if made.fits:
      cycles = made.estimated_cycles_per_step / 1e6
      row += [
        f"{cycles:,.0f}",
        f"{cycles / REFERENCE[name][0]:.2f}",
        f"{made.kernel_cycles_per_step / 1e6:.0f}",
        f"{made.mfu:.1%}",
      ]
    else:
      row += ["does not fit", "", "", ""]
    row.append(f"{time.perf_counter() - start:.0f} s")
    print("| " + " | ".join(row) + " |", flush=True)


def attention_table() -> None:
  """One So400m encoder of 4 blocks on a chip, forward and backward."""
  from big_siglip.models.compute import Compute
  from big_siglip.models.transformer import Encoder

  devices, _ = topologies.describe("v5e:1x1")
  mesh = sharding.make_mesh(devices=devices)
  split = sharding.batch_sharding(mesh)
  print("| tokens | attention | remat | scan | M cycles a block | peak GB |")
  print("|---|---|---|---|---|---|")
  for tokens, backend, remat, scan in (
    (256, "xla", "full", True),
    (256, "splash", "full", True),
    (256, "short", "full", True),
    (256, "short", "attention", True),
    (64, "xla", "full", True),
    (64, "short", "full", True),
  ):
    encoder = Encoder(
      4, 16, 4304, Compute("bfloat16", backend, remat, scan, split)
    )
    one = jnp.zeros((1, tokens, 1152), jnp.bfloat16)
    params = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding.replicated(mesh)
      ),
      jax.eval_shape(encoder.init, jax.random.key(0), one),
    )
    x = jax.ShapeDtypeStruct((128, tokens, 1152), jnp.bfloat16, sharding=split)

    @jax.jit
    def both_ways(params, x, cotangent, encoder=encoder):
      y, vjp = jax.vjp(encoder.apply, params, x)
      return y, vjp(cotangent)

    compiled = both_ways.lower(params, x, x).compile()
    cycles = hlo.costs(compiled.as_text()).cycles / 1e6 / 4
    peak = compiled.memory_analysis().peak_memory_in_bytes / 1e9
    print(
      f"| {tokens} | {backend} | {remat} | {scan} | {cycles:.1f} "
      f"| {peak:.2f} |",
      flush=True,
    )


def main() -> None:
  """Prints the tables asked for; none asked for: all."""
  jax.config.update("jax_platforms", "cpu")
  tables = {
    "losses": loss_table,
    "attention": attention_table,
    "steps": step_table,
  }
  for name in sys.argv[1:] or tables:
    print(f"\n{name} ({tables[name].__doc__.splitlines()[0]})\n")
    tables[name]()


if __name__ == "__main__":
  main()
