"""Which devices JAX is to look for, and which compiled programs it keeps."""

import os
import pathlib

import jax

from big_siglip import durations

# What TPUs and GPUs (of NVIDIA, of AMD) look like to Linux.
_DEVICES = pathlib.Path("/dev")
_ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")

_CACHE_BYTES = 2 * 2**30  # The programs used longest ago go first.


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


def prepare(min_devices: int = 1, *, keep: bool = True) -> None:
  """Keeps JAX from what is not there; call before any device is used.

  Where libtpu is installed, for `big-siglip plan`, JAX would look for TPUs,
  complain at length that there are none, and go on without. JAX_PLATFORMS, if
  set, is followed. A program that has one device alone keeps what it compiles,
  and finds it when it is started again (`keep_programs`).

  Args:
    min_devices: simulate so many CPU devices, unless more are asked for.
    keep: False: it may not, as where it will join others, or is not ours.
  """
  _avoid_absent(min_devices)
  if keep:
    keep_programs()


def keep_programs() -> None:
  """Keeps compiled programs in `durations.cache_folder`, where that is safe.

  It is with one device. Of several CPU devices a program that is read again has
  lost the order of its collectives, and hangs: there nothing is read, even if
  JAX_COMPILATION_CACHE_DIR is set. Of several accelerators that variable alone
  decides.
  """
  if jax.device_count() > 1:
    if jax.default_backend() == "cpu":
      jax.config.update("jax_enable_compilation_cache", False)
    return
  folder = durations.cache_folder()
  if folder is None or not _writable(folder):
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # What the towers take to compile for few rows is less than JAX's one second.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  if jax.config.jax_compilation_cache_max_size == -1:
    jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)


def device_bytes(device: jax.Device) -> int | None:
  """Returns the memory of a device; None where nobody knows.

  Simulated ones share that of the machine.
  """
  if device.platform == "cpu":
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // max(jax.local_device_count(), 1)
  return (device.memory_stats() or {}).get("bytes_limit")


def _writable(folder: pathlib.Path) -> bool:
  if "://" in str(folder):
    return True  # JAX finds out.
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return False
  return os.access(folder, os.W_OK | os.X_OK)


def _avoid_absent(min_devices: int) -> None:
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
