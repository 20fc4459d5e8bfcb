"""Chips that a run may be planned for, whether they are attached or not."""

from collections.abc import Sequence
import math
import os

import jax
import jaxlib.version

from big_siglip import extras
from big_siglip.errors import UserError
from big_siglip.models import flops
from big_siglip.plan import gpus
from big_siglip.plan.chips import Chip, simulated

# Google Cloud's system architecture pages. The clocks follow from the peak and
# the matrix units: 8 of 128 x 128 on v4 and v5p, 4 on v5e, 4 of 256 x 256 on
# v6e, at two operations a cell and cycle.
_TPUS = {
  "v4": Chip("v4", 32 * 2**30, 275e12, 1.05e9),
  "v5e": Chip("v5e", 16 * 2**30, 197e12, 1.5e9),
  "v5p": Chip("v5p", 95 * 2**30, 459e12, 1.75e9),
  "v6e": Chip("v6e", 32 * 2**30, 918e12, 1.75e9),
}
# The shapes that can be rented; other multiples of a host's chips compile too.
_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"
_SHAPES = {"v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}


def describe(
  topology: str, slices: int = 1
) -> tuple[Sequence[jax.Device], Chip]:
  """Returns the devices of a topology and what is known of their chip.

  Args:
    topology: "v5e:16x16" and the like, compiled for by the libtpu wheel without
      a TPU; "gpu:h100x8" and the like, see `gpus.describe`; "cpu:N" for N
      simulated devices; "gpu:N" for N attached GPUs.
    slices: so many TPU topologies of that shape, joined by a slower network.

  Raises:
    UserError: there is no such topology, or libtpu is not installed.
  """
  kind, _, shape = topology.partition(":")
  if kind == "cpu" and shape.isdecimal() and int(shape):
    return _cpus(int(shape))
  if kind == "gpu" and shape.isdecimal() and int(shape):
    return _gpus(int(shape))
  if gpus.named(topology) and shape:
    return gpus.describe(topology)
  sides = shape.split("x")
  if kind not in _TPUS or not all(s.isdecimal() and int(s) for s in sides):
    raise UserError(f"--topology={topology}: unknown; known: {_known()}")
  return _tpus(kind, shape, slices), _TPUS[kind]


def compiler(topology: str, devices: Sequence[jax.Device]) -> str:
  """Returns name and version of what compiles for a topology's devices."""
  if gpus.named(topology) and devices[0].platform == "gpu":
    return gpus.compiler()
  if topology.partition(":")[0] not in _TPUS:
    return f"jaxlib {jaxlib.version.__version__}"
  import libtpu

  return f"libtpu {libtpu.__version__}"


def _known(*kinds: str) -> str:
  tpus = [
    f"{kind}:({_SHAPES[kind].replace(' ', '|')})" for kind in kinds or _TPUS
  ]
  return ", ".join(
    [*tpus, *(() if kinds else ("cpu:N", "gpu:N", gpus.known()))]
  )


def _tpus(kind: str, shape: str, slices: int) -> Sequence[jax.Device]:
  topology = f"{kind}:{shape}"
  with extras.needed_by(f"--topology={topology}"):
    import libtpu  # noqa: F401
  # It would ask the cloud what TPU this machine has, and it has none.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  # It compiles alone and holds no chip, so that others may load libtpu too.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  try:
    options = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":  # One device a chip, as on v5p, not one a core.
      options["chip_config_name"] = "megacore"
    if math.prod(map(int, shape.split("x"))) == 1:
      options["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(topology, "tpu", **options)
  except Exception as error:
    raise UserError(
      f"--topology={topology}: the TPU compiler has no such topology; known: "
      f"{_known(kind)}"
    ) from error
  return described.devices


def _cpus(count: int) -> tuple[list[jax.Device], Chip]:
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return simulated(f"cpu:{count}", count), Chip("cpu", memory // count)


def _gpus(count: int) -> tuple[list[jax.Device], Chip]:
  try:
    devices = jax.devices("gpu")
  except RuntimeError:
    devices = []
  if len(devices) < count:
    raise UserError(f"--topology=gpu:{count}: {len(devices)} GPUs are attached")
  memory = (devices[0].memory_stats() or {}).get("bytes_limit")
  peak = flops.peak_flops(devices[0])
  return devices[:count], Chip(devices[0].device_kind, memory, peak)
