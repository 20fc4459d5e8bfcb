"""What a run may use of one chip, and the devices that stand in for it."""

import contextlib
import dataclasses

import jax

from big_siglip.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a run may use of one chip; None where it is not known.

  Attributes:
    kind: name of the family, such as "v5e".
    hbm_bytes: memory.
    peak_flops: bfloat16 operations a second.
    cycles_per_second: clock of its matrix units.
    bytes_per_second: to and from its memory.
    link_bytes_per_second: to other chips, each way.
  """

  kind: str
  hbm_bytes: int | None = None
  peak_flops: float | None = None
  cycles_per_second: float | None = None
  bytes_per_second: float | None = None
  link_bytes_per_second: float | None = None


def simulated(topology: str, count: int) -> list[jax.Device]:
  """Returns so many CPU devices.

  Args:
    topology: that asked for them, for the message.
    count: how many.

  Raises:
    UserError: this process has fewer and cannot have more.
  """
  with contextlib.suppress(RuntimeError):  # The devices may exist already.
    jax.config.update("jax_num_cpu_devices", count)
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise UserError(
      f"--topology={topology}: this process has {len(devices)} CPU devices"
    )
  return devices[:count]
