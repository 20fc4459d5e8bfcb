"""A batch goes through a block in slices, which stay in a TPU's fast memory.

Shape letters: B examples of the whole batch.
"""

from collections.abc import Callable, Sequence
import functools

from flax import linen as nn
import jax
from jax.sharding import NamedSharding

from big_siglip.models.compute import Compute
from big_siglip.models.remat import REMAT_POLICIES
from big_siglip.sharding import batch_devices, Slices


def make_slices(
  compute: Compute, batch: int, rows: int, length: int, unit: int = 1
) -> Slices | None:
  """Returns how rows are cut for `compute.slice_tokens`; None: they are not.

  Args:
    compute: how.
    batch: B, of all devices.
    rows: in which these lie.
    length: tokens of a row.
    unit: rows that make whole sequences.
  """
  sharding, limit = compute.on(batch), compute.slice_tokens
  if limit is None or sharding is None:
    return None
  mesh, axes = sharding.mesh, sharding.spec[0]
  rows //= batch_devices(mesh)
  count = slice_count(rows // unit, length * unit, limit)
  return Slices(count, mesh, axes) if count > 1 else None


def slice_count(rows: int, length: int, limit: int) -> int:
  """Returns the fewest equal slices of `rows` of `length` within the limit.

  A single row may be longer than that.
  """
  fitting = max(1, min(rows, limit // length))
  return next(
    count
    for count in range(1, rows + 1)
    if rows % count == 0 and rows // count <= fitting
  )


def apply_blocks(
  make: Callable[..., nn.Module],
  depth: int,
  compute: Compute,
  parts: tuple[jax.Array, ...],
  sharding: NamedSharding | None,
  *others: tuple[jax.Array, ...] | None,
) -> tuple[jax.Array, ...]:
  """Applies blocks in turn, stacked as "blocks" or each "block_i".

  Args:
    make: returns a block of the module that calls this, by its `name`.
    depth: number of blocks.
    compute: how; whether they are stacked, and what they keep.
    parts: see `map_slices`.
    sharding: the same.
    *others: the same, for every block.
  """
  again = depth - min(compute.keep_blocks, depth)
  anew, kept = (
    functools.partial(map_slices, call, sharding=sharding, others=others)
    for call in (_recomputed(compute), _apply)
  )
  if not compute.scan:
    for index in range(depth):
      apply = anew if index < again else kept
      parts = apply(make(name=f"block_{index}"), parts)
    return parts
  if not depth:
    return parts
  blocks = make(name="blocks")
  if blocks.is_initializing():
    again = depth  # All parameters come of the loop.
  if again:
    loop = nn.scan(
      lambda block, parts: (anew(block, parts), None),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=again,
    )
    loop = loop if again == depth else _first(loop, again)
    parts, _ = loop(blocks, _apart(parts) if compute.apart else parts)
    parts = tuple(part[0] for part in parts) if compute.apart else parts
  for params in _last(blocks, depth - again):
    parts = kept(make(parent=None).bind({"params": params}), parts)
  return parts


def _apart(parts):
  return tuple(part[None] for part in parts)


def _first(loop, count):
  """Returns a function of stacked blocks that takes the first for all."""
  return nn.map_variables(
    loop, "params", lambda tree: jax.tree.map(lambda x: x[:count], tree)
  )


def _last(blocks, count):
  """Returns the parameters of each of the last of stacked blocks.

  Split at once, so that their gradients are joined at once: those of single
  indices are each padded to the whole stack.
  """
  if not count:
    return []
  leaves, tree = jax.tree.flatten(blocks.variables["params"])
  ones = (1,) * count
  pieces = [jax.lax.split(x, (len(x) - count, *ones))[1:] for x in leaves]
  own = zip(*pieces, strict=True)
  return [jax.tree.unflatten(tree, [x[0] for x in each]) for each in own]


def _apply(block, part, *given):
  return block(part, *given)


def _apply_apart(block, part, *given):
  return block(part[0], *given)[None]


def _recomputed(compute):
  """Returns `_apply`, which keeps what `compute.remat` says."""
  apply = _apply_apart if compute.scan and compute.apart else _apply
  if compute.remat == "none":
    return apply
  # Inside a scan nothing could be merged across iterations anyway. But joined
  # products of a slice stay in a TPU's fast memory only if they are computed
  # again when the gradients of the slice behind it are done.
  wait = not compute.scan or (
    compute.joined and compute.slice_tokens is not None
  )
  policy = REMAT_POLICIES[compute.remat]
  return nn.remat(apply, prevent_cse=wait, policy=policy)


def map_slices(
  call: Callable[..., jax.Array],
  block: nn.Module,
  parts: tuple[jax.Array, ...],
  sharding: NamedSharding | None,
  others: Sequence[tuple[jax.Array, ...] | None],
) -> tuple[jax.Array, ...]:
  """Applies a block to slices of a batch, one after the other.

  Left to itself XLA computes them side by side; then none of what they make
  stays in a TPU's fast memory, which is what slices are for.

  Args:
    call: (block, x, ...) -> what the block returns.
    block: a module.
    parts: x, the slices.
    sharding: of a slice.
    others: the slices of further arguments; None: the argument is None.
  """
  done = []
  for i, part in enumerate(parts):
    if done:
      part, done[-1] = jax.lax.optimization_barrier((part, done[-1]))
    given = (None if x is None else x[i] for x in others)
    done.append(constrain(call(block, part, *given), sharding))
  return tuple(done)


def constrain(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
  """Says where activations lie, [B, ...]; None: as the compiler likes."""
  if sharding is None or x.shape[0] == 1:
    return x  # Parameters are initialised on a batch of one.
  return jax.lax.with_sharding_constraint(x, sharding)
