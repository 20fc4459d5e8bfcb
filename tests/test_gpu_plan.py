"""Plans for GPUs that are not there: what is counted, allocated and assumed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
import runs

from big_siglip import build, sharding
from big_siglip.errors import UserError
from big_siglip.models import flops
from big_siglip.models.attention import attention
from big_siglip.plan import gpus, hlo, operations, peaks, plan

# Wide enough for the towers' products to be almost all of the work.
WIDE = {
  f"model__{tower}__{field}": value
  for tower in ("image", "text")
  for field, value in {"width": 256, "mlp_dim": 1024, "num_heads": 4}.items()
}


def _counted(devices=1, **changes):
  """Returns (FLOPs of the traced step, three forward passes)."""
  config = runs.config(**WIDE, **changes)
  mesh = build.mesh(config, jax.devices()[:devices])
  program = build.program(config, mesh)
  batch = build.abstract_batch(config, mesh)
  traced = program.step.trace(program.abstract_state, batch)
  forward = flops.flops_per_example(config.model)
  passes = 3 * config.batch_size * forward
  return operations.executed_flops(traced), passes


def test_a_step_counts_three_forward_passes():
  counted, passes = _counted(model__remat="none", model__scan=False)
  # Less what pixels would get of gradients, and more for the loss.
  assert 0.98 < counted / passes < 1.01


def test_turns_of_a_scan_and_devices_of_a_ring_are_counted():
  plain = {"model__remat": "none", "model__scan": False, "batch_size": 64}
  deep = {"model__image__depth": 3, "model__text__depth": 2}
  expected, _ = _counted(**plain, **deep)
  scanned, _ = _counted(**{**plain, "model__scan": True}, **deep)
  np.testing.assert_allclose(scanned, expected)
  ring, _ = _counted(devices=8, **plain, **deep)
  np.testing.assert_allclose(ring, expected, rtol=1e-3)


def test_what_is_computed_again_is_counted():
  kept, passes = _counted(model__remat="none", model__scan=False)
  again, _ = _counted(model__remat="full", model__scan=False)
  # Of a block 8 products of 12: what comes after the MLP's second is not asked.
  assert 0.64 < (again - kept) / (passes / 3) < 8 / 12


def test_convolutions_count_as_products():
  image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))

  def patches(image, kernel):
    return jax.lax.conv_general_dilated(
      image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  traced = jax.jit(patches).trace(image, kernel)
  counted = operations.executed_flops(traced)
  assert counted == 2 * (2 * 2 * 2) * (4 * 4 * 3) * 5


def test_products_of_kernels_count_once_for_each_block_and_device():
  mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
  split = sharding.batch_sharding(mesh)
  x = jnp.ones((4, 64, 2, 16))

  def score(x):
    return attention(x, x, x, backend="short", sharding=split).sum()

  traced = jax.jit(jax.value_and_grad(score)).trace(x)
  # Two products forward and five backward, of 4 sequences of 64 with 2 heads.
  products = (2 + 5) * 2 * (4 * 2 * 64 * 64 * 16)
  assert operations.kernel_flops(traced) == products
  assert operations.executed_flops(traced) == products


def test_peak_memory_of_a_cpu_has_its_temporary_arrays():
  x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
  compiled = jax.jit(lambda x: (x @ x) @ x @ (x @ x)).lower(x).compile()
  stats = compiled.memory_analysis()
  assert stats.temp_size_in_bytes >= 2 * x.size * 4
  # What is given and returned, and what stands between.
  assert hlo.peak_bytes(stats, "cpu") >= 4 * x.size * 4


@pytest.fixture(scope="module")
def both():
  """Plans of one tiny run for eight H100 and for eight CPU devices."""
  config = runs.config(model__attention="xla")
  return plan.make_plan(config, "gpu:h100x8"), plan.make_plan(config, "cpu:8")


@pytest.mark.skipif(bool(gpus.compiler()), reason="compiled for GPUs")
def test_without_a_compiler_for_gpus_memory_is_that_of_cpus(both):
  gpu, cpu = both
  assert gpu.peak_hbm_bytes_per_chip == cpu.peak_hbm_bytes_per_chip
  assert gpu.state_bytes_per_chip == cpu.state_bytes_per_chip
  assert gpu.collectives == cpu.collectives
  assert "compiler for CPUs" in gpu.estimates["peak memory a chip"]


def test_every_figure_of_a_gpu_follows_from_its_sheet(both):
  gpu, _ = both
  peak = 989e12
  assert gpu.hbm_bytes_per_chip == int(81_559 * 2**20 * 0.75)
  state = 2 * gpu.state_bytes_per_chip / 3_352e9
  products = gpu.executed_flops_per_step / 8 / peak
  assert gpu.least_seconds_per_step >= max(state, products)
  assert gpu.estimated_seconds_per_step >= max(
    gpu.least_seconds_per_step, 2 * products
  )
  np.testing.assert_allclose(
    gpu.mfu, gpu.flops_per_step / (gpu.estimated_seconds_per_step * 8 * peak)
  )


def test_products_alone_take_the_share_of_the_peak_that_is_assumed():
  timing = peaks.timing(
    peaks.Chip("h100", peak_flops=1e12),
    4,
    least=0.1,
    executed=4e12,
    model_flops=3e12,
    steps=3600,
    utilization=0.5,
  )
  assert timing["estimated_seconds_per_step"] == 2.0
  assert timing["mfu"] == 0.375
  assert (timing["hours"], timing["chip_hours"]) == (2.0, 8.0)


def test_the_table_says_that_it_estimates():
  status, output, message = programs.call(
    "tools/plan.py",
    f"--config={runs.CONFIG}",
    "--topology=gpu:RTX4090",
    "--utilization=0.25",
    *runs.overrides(),
  )
  assert status == 0, message
  assert "Estimates, none measured:" in output
  assert "25% of the peak of NVIDIA's data sheet of the rtx4090" in output
  assert "cycles" not in output


@pytest.mark.parametrize(
  ("topology", "flags", "said"),
  [
    ("gpu:h99x8", (), "unknown; known: gpu:(a10|a100|"),
    ("gpu:h100x0", (), "unknown; known: gpu:(a10|a100|"),
    ("gpu:h100x8", ("--utilization=1.5",), "--utilization=1.5: must lie in"),
    ("gpu:h100x8", ("--config.mesh.data=3",), "exactly the 8 devices"),
  ],
)
def test_a_mistake_is_one_line(topology, flags, said):
  line = programs.said_in_one_line(
    "tools/plan.py",
    f"--config={runs.CONFIG}",
    f"--topology={topology}",
    *runs.overrides(),
    *flags,
  )
  assert said in line


@pytest.mark.parametrize("name", gpus.FRACTION_VARIABLES)
def test_what_jax_may_take_of_a_gpu_is_in_the_environment(name, monkeypatch):
  monkeypatch.setenv(name, "0.9")
  assert gpus.memory_fraction() == 0.9
  monkeypatch.setenv(name, "90%")
  with pytest.raises(UserError, match=f"{name}=90%: must lie in"):
    gpus.memory_fraction()


def test_every_gpu_has_a_peak():
  assert all(gpu.device_kind in flops.PEAK_FLOPS for gpu in gpus.GPUS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a100", "h100", "l40s", "rtx4090", "b200"])
def test_the_compiler_for_gpus_needs_no_gpu(name):
  if not gpus.compiler():
    pytest.skip("needs the extra cuda")
  status, output, message = programs.start(
    "tools/plan.py",
    f"--config={runs.CONFIG}",
    f"--topology=gpu:{name}x2",
    "--json",
    *runs.overrides(),
  )
  assert status == 0, message
  made = json.loads(output)
  assert made["peak_hbm_bytes_per_chip"] > made["state_bytes_per_chip"]
  assert made["collectives"]["collective-permute"]["count"] > 0
  assert "compiler for GPUs" in made["estimates"]["peak memory a chip"]
