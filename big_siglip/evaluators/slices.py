"""A batch in slices, on a CPU: each no larger than what its cache holds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from big_siglip.models.towers import Image
from big_siglip.sharding import batch_devices

# What a CPU embeds at once: more activations than that leave its cache between
# one operation and the next, which cost a sixth of the time (B/16, batch 32).
_CACHED_TOKENS = 1_600


def in_cache(
  apply: Callable[[Image], jax.Array],
  rows: Image,
  tokens: int,
  mesh: Mesh,
) -> jax.Array:
  """Returns `apply` of rows, on a CPU for no more at once than its cache holds.

  Args:
    apply: B... -> B..., what is returned as BD.
    rows: its input.
    tokens: of a row.
    mesh: on whose devices.
  """
  if mesh.devices.flat[0].platform != "cpu":
    return _flat(apply(rows))
  size = max(_CACHED_TOKENS // tokens, 1)
  return _in_slices(apply, rows, size, batch_devices(mesh))


def _in_slices(
  apply: Callable[[Image], jax.Array],
  rows: Image,
  size: int,
  devices: int,
) -> jax.Array:
  """Returns `apply` of all rows, computed for up to `size` a device at once."""
  total = len(jax.tree.leaves(rows)[0])
  own = total // devices
  count = -(-own // size)
  if count == 1:
    return _flat(apply(rows))
  size = -(-own // count)

  # A device's rows lie together; a slice takes some of each device's.
  def cut(rows: jax.Array) -> jax.Array:
    shape = rows.shape[1:]
    by_device = rows.reshape(devices, own, *shape)
    surplus = [(0, 0), (0, count * size - own)] + [(0, 0)] * len(shape)
    slices = jnp.pad(by_device, surplus).reshape(devices, count, size, *shape)
    return slices.swapaxes(0, 1).reshape(count, devices * size, *shape)

  result = jax.lax.map(apply, jax.tree.map(cut, rows))
  result = result.reshape(count, devices, size, -1)
  result = result.swapaxes(0, 1).reshape(devices, count * size, -1)
  return result[:, :own].reshape(total, -1)


def _flat(found: jax.Array) -> jax.Array:
  return found.reshape(len(found), -1)
