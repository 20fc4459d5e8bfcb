"""What the TPU compiler says of the losses and of whole steps; needs no TPU.

python -m benchmarks.tpu [losses] [attention] [steps] [recipe] [naflex]

Prints the tables of docs/performance.md. The compiler (libtpu, of the extra
`tpu`) compiles for chips that are not there, says the peak memory a chip, and
writes an estimate of the cycles beside every operation (`hlo.costs`). Whole
steps take one to four minutes each to compile on idle cores, those of SigLIP
2's recipe five and more.

The reference of the steps is big_vision's model and update function, compiled
for the same chips: batch 32,768, 224 pixels, 64 tokens, AdamW.
"""

import functools
import sys
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from big_siglip import command_line, losses, sharding
from big_siglip.models import flops
from big_siglip.objectives import costs as terms
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
# SigLIP 2's recipe.
TARGETS = 0.25  # Of a decoder's tokens: logits of others are not computed.
_PLAIN = {"terms": {}}
_LARGE = {
  "model.image.size": "So400m/14",
  "model.text.size": "So400m",
  "model.image.image_size": 224,
}
# 84 of 224 pixels are as many patches as 96 of 256. What half of the decoder's
# slices leaves of memory goes to blocks of the towers.
_LARGE_DISTIL = {
  "terms.teacher.local_size": 84,
  "terms.teacher.weight": 1.0,
  "terms.locca.slice_examples": 32,
  "model.keep_blocks": 4,
}
RECIPE = (
  ("siglip2/pretrain", _PLAIN),
  ("siglip2/pretrain", {}),
  ("siglip2/distil", {}),
  ("siglip2/pretrain", {**_LARGE, **_PLAIN}),
  ("siglip2/pretrain", _LARGE),
  ("siglip2/distil", {**_LARGE, **_LARGE_DISTIL}),
)
# NaFlex: 128 examples a chip, too.
FEW, FEW_EXAMPLES = "v5e:4x4", 2_048


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
    config = _load(name, {"optimizer.name": "adamw", **changes})
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


def recipe_table() -> None:
  """Steps of SigLIP 2's stages, with our kernel of attention.

  Products: of the model, by hand (2 operations a multiply-add, backward twice
  forward, nothing again), at the chip's peak. Cycles: with those that
  kernels take at the least.
  """
  part = f"{TARGETS:.0%}"
  print(
    "| config | changes | peak GB a chip | M cycles, every token a target "
    f"| {part} of them | products, every token | quotient | products, {part} "
    "| quotient | products of three passes, every token | quotient "
    "| compiled in |"
  )
  print("|---|---|---|---|---|---|---|---|---|---|---|---|")
  for name, changes in RECIPE:
    config = _recipe(name, changes)
    start = time.perf_counter()
    made = plan.make_plan(config, TOPOLOGY)
    all_products, products = (_products(config, made, x) for x in (1, TARGETS))
    passes = all_products + _million_cycles(_again(config), made)
    cycles = _cycles(made, TARGETS)
    row = (
      name,
      " ".join(f"{k}={v}" for k, v in changes.items()) or "none",
      f"{made.peak_hbm_bytes_per_chip / 1e9:.2f}",
      f"{_cycles(made, 1):,.0f}",
      f"{cycles:,.0f}",
      f"{all_products:,.0f}",
      f"{cycles / all_products:.2f}",
      f"{products:,.0f}",
      f"{cycles / products:.2f}",
      f"{passes:,.0f}",
      f"{cycles / passes:.2f}",
      f"{time.perf_counter() - start:.0f} s",
    )
    print("| " + " | ".join(row) + " |", flush=True)


def naflex_table() -> None:
  """Steps without terms, of squares and of own shapes, 2,048 on v5e:4x4."""
  print("| patches | peak GB a chip | M cycles | of the squares' |")
  print("|---|---|---|---|")
  shaped = _few("siglip2/naflex", {**_PLAIN, "microbatch": FEW_EXAMPLES // 4})
  squares, found = 0.0, []
  for length in (None, *plan.lengths(shaped)):
    config = shaped if length else _few("siglip2/pretrain", _PLAIN)
    made = plan.make_plan(config, FEW, length=length)
    cycles = _cycles(made, TARGETS)
    if length:
      found.append(cycles)
    else:
      squares = cycles
    print(
      f"| {length or '16 x 16, squares'} "
      f"| {made.peak_hbm_bytes_per_chip / 1e9:.2f} | {cycles:,.0f} "
      f"| {cycles / squares:.3f} |",
      flush=True,
    )
  mean = sum(found) / len(found)
  print(f"| mean of the draw | | {mean:,.0f} | {mean / squares:.3f} |")


def _recipe(name: str, changes: dict) -> ConfigDict:
  """Returns the config of a stage, all examples at once."""
  return _load(
    name, {"microbatch": 32_768, "mesh.fsdp": 32, **_SHORT, **changes}
  )


def _few(name: str, changes: dict) -> ConfigDict:
  return _load(name, {"batch_size": FEW_EXAMPLES, "mesh.fsdp": 8, **changes})


def _load(name: str, fields: dict) -> ConfigDict:
  return command_line.load_config(
    f"configs/{name}.py", [f"--config.{k}={v}" for k, v in fields.items()]
  )


def _cycles(made: plan.Plan, targets: float) -> float:
  """Returns million cycles where so many tokens of a decoder are targets."""
  passed_over = (1 - targets) * (made.optional_cycles_per_step or 0)
  others = made.estimated_cycles_per_step or 0
  return (others - passed_over + (made.kernel_cycles_per_step or 0)) / 1e6


def _products(config: ConfigDict, made: plan.Plan, targets: float) -> float:
  """Returns the million cycles of the model's own products at the peak."""
  without, logits = (
    sum(terms.flops_of_terms(config, logits=counted).values())
    for counted in (False, True)
  )
  total = flops.flops_per_step(config) + without
  total += targets * (logits - without)
  return _million_cycles(total, made)


def _again(config: ConfigDict) -> float:
  """Returns the FLOPs that a pass for each task of a decoder would have more.

  An image's keys and values are computed once for all tasks.
  """
  single, tasks = config.copy_and_resolve_references(), ("aref", "gcap")
  for section in single.terms.values():
    if section.kind == "captioning":
      section.update(dict.fromkeys(tasks, 0.0))
  one, all_of_them = (
    terms.flops_of_terms(each, logits=False) for each in (single, config)
  )
  return sum(
    (1 + len(tasks)) * one[name] - all_of_them[name]
    for name, section in config.terms.items()
    if section.kind == "captioning"
  )


def _million_cycles(total: float, made: plan.Plan) -> float:
  """Returns what so many FLOPs of all chips take at the peak."""
  _, chip = topologies.describe(TOPOLOGY)
  return total / made.chips / chip.peak_flops * chip.cycles_per_second / 1e6


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
    "recipe": recipe_table,
    "naflex": naflex_table,
  }
  for name in sys.argv[1:] or tables:
    print(f"\n{name} ({tables[name].__doc__.splitlines()[0]})\n")
    tables[name]()


if __name__ == "__main__":
  main()
