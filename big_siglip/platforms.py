"""Which devices JAX is to look for."""

import os
import pathlib

import jax

# What TPUs and GPUs (of NVIDIA, of AMD) look like to Linux.
_ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")


def prepare(min_devices: int = 1) -> None:
  """Keeps JAX from what is not there; call before any device is used.

  Where libtpu is installed, for `tools/plan.py`, JAX would look for TPUs,
  complain at length that there are none, and go on without. JAX_PLATFORMS, if
  set, is followed.

  Args:
    min_devices: simulate so many CPU devices, unless more are asked for.
  """
  if min_devices > jax.config.jax_num_cpu_devices:
    jax.config.update("jax_num_cpu_devices", min_devices)
  if jax.config.jax_platforms or "TPU_NAME" in os.environ:
    return
  devices = pathlib.Path("/dev")
  if any(any(devices.glob(pattern)) for pattern in _ACCELERATORS):
    return
  try:
    import libtpu  # noqa: F401
  except ImportError:
    return
  jax.config.update("jax_platforms", "cpu")
