"""What the ring losses share: the journey of the texts, and exact products."""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from big_siglip.errors import UserError


def rows_per_device(n: int, mesh: Mesh, axes: Sequence[str]) -> int:
  """Returns how many of `n` examples each device along `axes` has.

  Raises:
    UserError: the devices do not divide n.
  """
  devices = math.prod(mesh.shape[axis] for axis in axes)
  if n % devices:
    raise UserError(f"batch of {n}: must be divisible by {devices} devices")
  return n // devices


def travel_ring(
  visit: Callable[..., tuple[Any, Any]],
  *,
  ahead: Any,
  behind: Any,
  staying: Any,
  axes: Sequence[str],
) -> tuple[Any, Any]:
  """Takes arrays once around the ring of devices; call it in a shard_map.

  Neither transfer waits for the visit of its hop, so both overlap with it:
  what the visits only read goes ahead, and what they change follows its texts
  one hop behind.

  Args:
    visit: (ahead, behind, staying, own) -> (behind, staying); `own` says
      whether the device's own texts are there.
    ahead: arrays that travel and do not change.
    behind: arrays that travel and collect.
    staying: arrays that stay and collect.
    axes: mesh axes that form the ring.

  Returns:
    `behind`, back home, and `staying`.
  """
  devices = jax.lax.axis_size(axes)
  send = functools.partial(
    jax.lax.ppermute,
    axis_name=axes,
    perm=[(i, (i + 1) % devices) for i in range(devices)],
  )

  def hop(carry, index):
    ahead, behind, staying = carry
    next_ahead, behind = send((ahead, behind))
    behind, staying = visit(ahead, behind, staying, index == 0)
    return (next_ahead, behind, staying), None

  carry, _ = jax.lax.scan(
    hop, (ahead, behind, staying), jnp.arange(devices - 1)
  )
  # The last visit sends nothing ahead, only what was collected home.
  ahead, behind, staying = carry
  behind, staying = visit(ahead, send(behind), staying, devices == 1)
  return send(behind), staying


def full_like(x: jax.Array, value: float = 0.0) -> jax.Array:
  """Returns float32 of the shape of `x`, varying over the devices as `x` does.

  The carry of a scan has to vary from the start.
  """
  return jnp.full_like(x, value, dtype=jnp.float32)


def product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns an einsum in float32; see `sigmoid.dot_products` for why."""
  return jnp.einsum(
    subscripts, a, b, precision="highest", preferred_element_type=jnp.float32
  )
