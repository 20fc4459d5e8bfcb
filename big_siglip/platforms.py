"""Which devices JAX is to look for."""

import os
import pathlib

import jax

# What TPUs and GPUs (of NVIDIA, of AMD) look like to Linux.
_DEVICES = pathlib.Path("/dev")
_ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")


def stay_on_cpu(min_devices: int) -> int:
  """Keeps JAX from the accelerators; returns how many devices to simulate.

  Call before any device is used.

  Args:
    min_devices: so many at least; else those that this machine has.
  """
  attached = 0
  if jax.config.jax_platforms != "cpu":
    found = [_DEVICES.glob(pattern) for pattern in _ACCELERATORS]
    attached = sum(len(list(files)) for files in found)
    jax.config.update("jax_platforms", "cpu")
  count = max(attached, jax.config.jax_num_cpu_devices, 1)
  if count % min_devices:
    count = min_devices
  if count > jax.config.jax_num_cpu_devices:
    jax.config.update("jax_num_cpu_devices", count)
  return count


def prepare(min_devices: int = 1) -> None:
  """Keeps JAX from what is not there; call before any device is used.

  Where libtpu is installed, for `big-siglip plan`, JAX would look for TPUs,
  complain at length that there are none, and go on without. JAX_PLATFORMS, if
  set, is followed.

  Args:
    min_devices: simulate so many CPU devices, unless more are asked for.
  """
  # Left alone where one will do: it must not be set once devices are in use.
  if min_devices > max(jax.config.jax_num_cpu_devices, 1):
    jax.config.update("jax_num_cpu_devices", min_devices)
  if jax.config.jax_platforms or "TPU_NAME" in os.environ:
    return
  if any(any(_DEVICES.glob(pattern)) for pattern in _ACCELERATORS):
    return
  try:
    import libtpu  # noqa: F401
  except ImportError:
    return
  jax.config.update("jax_platforms", "cpu")
