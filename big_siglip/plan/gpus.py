"""GPUs that a run may be planned for without having one.

XLA's compiler for GPUs is part of JAX's plugin for CUDA (extra "cuda") and
needs no GPU, no driver and none of NVIDIA's libraries, as long as it is told
what the GPU is like. Where the plugin is not installed simulated CPU devices
stand in.
"""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict

from big_siglip.errors import UserError
from big_siglip.models import flops
from big_siglip.plan.chips import Chip, simulated

# The share of a GPU's memory that JAX takes, unless one of these variables says
# another. The second is the first's older name; JAX refuses to start with both.
FRACTION_VARIABLES = (
  "XLA_CLIENT_MEM_FRACTION",
  "XLA_PYTHON_CLIENT_MEM_FRACTION",
)
_FRACTION = 0.75
# Without a GPU nothing can be timed, so nothing is tuned: cuBLAS multiplies.
_UNTUNED = {
  "xla_gpu_autotune_level": 0,
  "xla_gpu_enable_triton_gemm": False,
}


@dataclasses.dataclass(frozen=True)
class Gpu:
  """What one GPU is like.

  Attributes:
    device_kind: as JAX names it; `flops.PEAK_FLOPS` has its peak.
    mib: memory, as nvidia-smi shows it.
    gbps: memory bandwidth, 10^9 bytes a second.
    link_gbps: to other GPUs of the host, 10^9 bytes a second each way.
    capability: (major, minor) of CUDA.
    cores: streaming multiprocessors.
    l2_mib: second-level cache.
    ghz: boost clock.
  """

  device_kind: str
  mib: int
  gbps: int
  link_gbps: int
  capability: tuple[int, int]
  cores: int
  l2_mib: int
  ghz: float


# NVIDIA's data sheets and architecture white papers; links are NVLink (half of
# the sheets' sum of both ways) or PCIe.
GPUS = {
  "a10": Gpu("NVIDIA A10", 23_028, 600, 32, (8, 6), 72, 6, 1.695),
  "a100": Gpu(
    "NVIDIA A100-SXM4-80GB", 81_920, 2_039, 300, (8, 0), 108, 40, 1.41
  ),
  "a100-40gb": Gpu(
    "NVIDIA A100-SXM4-40GB", 40_960, 1_555, 300, (8, 0), 108, 40, 1.41
  ),
  "b200": Gpu("NVIDIA B200", 183_359, 7_700, 900, (10, 0), 148, 126, 1.965),
  "h100": Gpu(
    "NVIDIA H100 80GB HBM3", 81_559, 3_352, 450, (9, 0), 132, 50, 1.98
  ),
  "h100-pcie": Gpu(
    "NVIDIA H100 PCIe", 81_559, 2_039, 64, (9, 0), 114, 50, 1.755
  ),
  "h200": Gpu("NVIDIA H200", 143_771, 4_800, 450, (9, 0), 132, 50, 1.98),
  "l4": Gpu("NVIDIA L4", 23_034, 300, 32, (8, 9), 58, 48, 2.04),
  "l40s": Gpu("NVIDIA L40S", 46_068, 864, 32, (8, 9), 142, 96, 2.52),
  "rtx3090": Gpu(
    "NVIDIA GeForce RTX 3090", 24_576, 936, 32, (8, 6), 82, 6, 1.695
  ),
  "rtx4090": Gpu(
    "NVIDIA GeForce RTX 4090", 24_564, 1_008, 32, (8, 9), 128, 72, 2.52
  ),
  "rtx5090": Gpu(
    "NVIDIA GeForce RTX 5090", 32_607, 1_792, 64, (12, 0), 170, 96, 2.407
  ),
}
# {capability: (shared memory of a multiprocessor, of a block)} in bytes, and
# threads: CUDA's programming guide.
_SHARED = {
  (8, 0): (167_936, 166_912, 2_048),
  (8, 6): (102_400, 101_376, 1_536),
  (8, 9): (102_400, 101_376, 1_536),
  (9, 0): (233_472, 232_448, 2_048),
  (10, 0): (233_472, 232_448, 2_048),
  (12, 0): (102_400, 101_376, 1_536),
}


def known() -> str:
  """Returns the topologies that `describe` knows, for messages."""
  return f"gpu:({'|'.join(GPUS)})xN"


def named(topology: str) -> bool:
  """Returns whether a topology is of GPUs by name, such as "gpu:h100x8"."""
  kind, _, rest = topology.partition(":")
  return kind == "gpu" and not rest.isdecimal()


def describe(topology: str) -> tuple[Sequence[jax.Device], Chip]:
  """Returns devices to compile for, of one host, and what the GPU offers.

  Args:
    topology: "gpu:h100x8" and the like; "gpu:h100" is one.

  Raises:
    UserError: no such GPU or number.
  """
  name, _, count = topology.removeprefix("gpu:").lower().rpartition("x")
  if not (name in GPUS and count.isdecimal() and int(count)):
    name, count = topology.removeprefix("gpu:").lower(), "1"
  if name not in GPUS:
    raise UserError(f"--topology={topology}: unknown; known: {known()}")
  gpu, number = GPUS[name], int(count)
  chip = Chip(
    name,
    int(gpu.mib * 2**20 * memory_fraction()),
    flops.PEAK_FLOPS[gpu.device_kind],
    bytes_per_second=gpu.gbps * 1e9,
    link_bytes_per_second=gpu.link_gbps * 1e9,
  )
  return _absent(gpu, number) or simulated(topology, number), chip


def memory_fraction() -> float:
  """Returns the share of a GPU's memory that JAX takes.

  Raises:
    UserError: the environment has no number between 0 and 1.
  """
  for name in FRACTION_VARIABLES:
    if value := os.environ.get(name):
      try:
        fraction = float(value)
      except ValueError:
        fraction = 0.0
      if not 0 < fraction <= 1:
        raise UserError(f"{name}={value}: must lie in (0, 1]")
      return fraction
  return _FRACTION


def compiler() -> str:
  """Returns name and version of XLA's compiler for GPUs; "": there is none."""
  version = _plugin()
  if not version:
    return ""
  return f"JAX's plugin for CUDA {version.__version__.partition('.dev')[0]}"


def options(
  topology: str, devices: Sequence[jax.Device]
) -> dict[str, Any] | None:
  """Returns options of the compiler for the devices of a topology."""
  return _UNTUNED if named(topology) and devices[0].platform == "gpu" else None


def without_cudnn(config: ConfigDict) -> ConfigDict:
  """Returns a config whose attention can be compiled without cuDNN."""
  changed = config.copy_and_resolve_references()
  if changed.model.attention in ("auto", "cudnn"):
    changed.model.attention = "xla"
  return changed


def _plugin() -> Any:
  """Returns JAX's plugin for CUDA, or None."""
  try:
    from jax_plugins.xla_cuda13 import version
  except ImportError:
    try:
      from jax_plugins.xla_cuda12 import version
    except ImportError:
      return None
  return version


def _absent(gpu: Gpu, count: int) -> Sequence[jax.Device]:
  """Returns devices that are not there; none where no compiler is."""
  if not _plugin():
    return ()
  from jax.experimental import topologies

  try:
    described = topologies.get_topology_desc(
      f"{gpu.device_kind} x {count}",
      "cuda",
      target_config=_target(gpu),
      topology=f"1x1x{count}",
    )
  except Exception as error:  # A plugin for another JAX, for example.
    logging.warning("no compiler for GPUs: %s", error)
    return ()
  return described.devices


def _target(gpu: Gpu) -> str:
  """Returns XLA's `GpuTargetConfigProto` in text form."""
  shared, of_a_block, threads = _SHARED[gpu.capability]
  major, minor = gpu.capability
  return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024
      threads_per_warp: 32
      shared_memory_per_block: 49152
      shared_memory_per_core: {shared}
      shared_memory_per_block_optin: {of_a_block}
      threads_per_core_limit: {threads}
      core_count: {gpu.cores}
      fpus_per_core: {64 if gpu.capability == (8, 0) else 128}
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      memory_bandwidth: {gpu.gbps * 10**9}
      l2_cache_size: {gpu.l2_mib * 2**20}
      clock_rate_ghz: {gpu.ghz}
      device_memory_size: {gpu.mib * 2**20}
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }}
    device_description_str: "{gpu.device_kind}"
  """
