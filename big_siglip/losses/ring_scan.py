"""What the ring losses share: the scan around the ring, and exact products."""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from big_siglip.errors import UserError
from big_siglip.schema.words import DTYPES


def tile_rows(
  n: int, mesh: Mesh, axes: Sequence[str], chunk_size: int | None
) -> int:
  """Returns how many images of a device meet the texts at once.

  Args:
    n: examples of the whole batch.
    mesh: the devices.
    axes: mesh axes that share the batch.
    chunk_size: the number asked for; None: all that a device has.

  Raises:
    UserError: the devices do not divide n, or chunk_size does not divide the
      examples of a device.
  """
  devices = math.prod(mesh.shape[axis] for axis in axes)
  if n % devices:
    raise UserError(f"batch of {n}: must be divisible by {devices} devices")
  rows = n // devices
  if chunk_size is None:
    return rows
  if chunk_size < 1 or rows % chunk_size:
    raise UserError(
      f"chunk_size={chunk_size}: must divide the {rows} examples of a device"
    )
  return chunk_size


def ring_scan(
  visit: Callable[..., tuple[Any, Any]],
  *,
  blocks: Any,
  block_sums: Any,
  sums: Any,
  mesh: Mesh,
  axes: Sequence[str],
) -> tuple[Any, Any]:
  """Takes arrays once around the ring of devices; call it in a shard_map.

  Half of the rows go one way and half the other, so that both directions
  of every link are busy and a hop takes half the time. (Whole blocks in both
  directions would meet all devices after half the hops, but what they collect
  would then have to go home, as many hops again, over twice the buffers.)

  What the rows collect is sent off before the visit and needed only at its end,
  so that transfer hides behind the visit's products. The rows themselves are
  sent after it: in flight at once, both would need a buffer more.

  Args:
    visit: (blocks, block_sums, sums, own, start) -> (block_sums, sums), of some
      rows of one device, those from `start` on; `own` says whether it is the
      device itself.
    blocks: arrays [b, ...] that rotate, such as texts, and do not change.
    block_sums: arrays [b, ...] that rotate with them, such as their gradients,
      and to which every device adds.
    sums: arrays of a device, to which it adds what it sees of every block.
    mesh: the devices.
    axes: mesh axes that form the ring.

  Returns:
    `block_sums`, back on their own devices, and `sums`.
  """
  order = ring_order(mesh, axes)
  onward = list(zip(order, order[1:] + order[:1], strict=True))
  backward = [(j, i) for i, j in onward]
  rows = len(jax.tree.leaves(blocks)[0])
  # Two devices have one link.
  ways = [onward, backward] if len(order) > 2 and rows % 2 == 0 else [onward]
  share = rows // len(ways)
  starts = range(0, rows, share)

  def split(arrays):
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=share)
    return [
      jax.tree.map(functools.partial(cut, start_index=start), arrays)
      for start in starts
    ]

  def send(parts):
    return [
      jax.lax.ppermute(part, axes, way)
      for part, way in zip(parts, ways, strict=True)
    ]

  def hop(_, carry):
    blocks, block_sums, sums, own = carry
    collected = []
    for start, part, arriving in zip(
      starts, blocks, send(block_sums), strict=True
    ):
      arriving, sums = visit(part, arriving, sums, own, start)
      collected.append(arriving)
    held = jax.lax.optimization_barrier((blocks, collected, sums))
    blocks, collected, sums = held
    return send(blocks), collected, sums, False

  # Else XLA fills in the zeros anew in every turn of the loop.
  block_sums, sums = jax.lax.optimization_barrier((block_sums, sums))
  carry = split(blocks), split(block_sums), sums, True
  _, block_sums, sums, _ = jax.lax.fori_loop(0, len(order), hop, carry)
  home = jax.tree.map(lambda *parts: jnp.concatenate(parts), *send(block_sums))
  return home, sums


def ring_order(mesh: Mesh, axes: Sequence[str]) -> list[int]:
  """Returns the devices along `axes` in an order of short hops.

  On a grid of TPU chips every hop is to a neighbour: out in serpentines over
  all columns but the first, home through the first. Between chips that are no
  neighbours XLA does not transfer in the background.

  Args:
    mesh: the devices.
    axes: mesh axes that form the ring.

  Returns:
    Positions in the flattened axes, each once.
  """
  others = [name for name in mesh.axis_names if name not in axes]
  by_axes = [mesh.axis_names.index(name) for name in (*axes, *others)]
  devices = mesh.devices.transpose(by_axes)
  devices = devices.reshape(math.prod(mesh.shape[a] for a in axes), -1)[:, 0]
  places = [tuple(getattr(device, "coords", ())) for device in devices]
  positions = {place: index for index, place in enumerate(places)}
  if len(positions) < len(places) or not places[0]:
    return list(range(len(places)))  # Not chips on a grid.
  return [positions[place] for place in _serpentine_circle(places)]


def _serpentine_circle(places: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
  """Orders the corners of a grid into a circle; [(x, y, z)] -> [(x, y, z)]."""
  columns = sorted({place[0] for place in places})
  rows = []  # A serpentine over the other dimensions, from last to second.
  lines = sorted({place[1:] for place in places})
  for layer in sorted({line[1:] for line in lines}):
    along = [line for line in lines if line[1:] == layer]
    rows += along[::-1] if rows and along[-1][0] == rows[-1][0] else along
  home, rest = columns[0], columns[1:]
  out = []
  for index, row in enumerate(rows):
    out += [(x, *row) for x in (rest[::-1] if index % 2 else rest)]
  circle = [(home, *rows[0]), *out, *((home, *row) for row in rows[:0:-1])]
  return circle if set(circle) == set(places) else list(places)


def rows_from(x: jax.Array | None, start: jax.Array, count: int) -> Any:
  """Returns `count` rows of x, those from `start` on; None of None."""
  return x if x is None else jax.lax.dynamic_slice_in_dim(x, start, count)


def full_like(x: jax.Array, value: float = 0.0) -> jax.Array:
  """Returns float32 of the shape of `x`, varying over the devices as `x` does.

  The carry of a scan has to vary from the start.
  """
  return jnp.full_like(x, value, dtype=jnp.float32)


def product(
  subscripts: str, a: jax.Array, b: jax.Array, dtype: str = "float32"
) -> jax.Array:
  """Returns an einsum of `dtype` factors, summed in float32.

  The default precision of accelerators rounds float32 factors to bfloat16,
  which the sigmoid's logits, scaled by up to 100, feel. The products are a
  small part of a step, so the highest precision costs little; bfloat16 factors
  cost a sixth of it, and are rounded on request alone.
  """
  return jnp.einsum(
    subscripts,
    as_factor(a, dtype),
    as_factor(b, dtype),
    precision="highest",
    preferred_element_type=jnp.float32,
  )


def as_factor(x: jax.Array, dtype: str) -> jax.Array:
  """Returns `x` as it enters products: never in more digits than it has."""
  return x.astype(dtype) if dtype == "bfloat16" else x


def check_dtype(dtype: str) -> None:
  """Raises a `UserError` for what is not in `DTYPES`."""
  if dtype not in DTYPES:
    raise UserError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
