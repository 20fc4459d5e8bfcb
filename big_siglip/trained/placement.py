"""Where a model computes: devices by their names."""

from collections.abc import Sequence

import jax

from big_siglip.errors import UserError

# What a user may ask for: a platform ("cpu", "gpu", "tpu": all of its devices),
# one of its devices ("gpu:1"), devices of JAX; None: all of the default ones.
DeviceLike = str | jax.Device | Sequence[jax.Device] | None


def find_devices(device: DeviceLike) -> Sequence[jax.Device] | None:
  """Returns the devices that are asked for, None for JAX's default ones.

  Raises:
    UserError: they are not there.
  """
  if device is None:
    return None
  if isinstance(device, jax.Device):
    return [device]
  if not isinstance(device, str):
    return _check_devices(device)
  platform, colon, number = device.partition(":")
  try:
    found = jax.devices(platform) if platform else []
  except RuntimeError:
    found = []
  if not found or colon and not number.isdecimal():
    raise _not_there(device)
  if not colon:
    return found
  if int(number) >= len(found):
    raise _not_there(device)
  return [found[int(number)]]


def _check_devices(devices) -> Sequence[jax.Device]:
  try:
    devices = list(devices)
  except TypeError:
    devices = [devices]
  if not devices or not all(isinstance(d, jax.Device) for d in devices):
    raise UserError(
      f"device={devices!r}: must be a platform such as 'cpu', one of its "
      "devices such as 'gpu:0', or devices of JAX"
    )
  return devices


def _not_there(device: str) -> UserError:
  here = jax.devices()
  others = [] if here[0].platform == "cpu" else jax.devices("cpu")
  names = ", ".join(f"{d.platform}:{i}" for i, d in enumerate(here))
  names += "".join(f", {d.platform}:{i}" for i, d in enumerate(others))
  return UserError(f"device={device!r}: not among those of JAX here: {names}")
