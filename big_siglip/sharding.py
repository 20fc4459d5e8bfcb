"""Where arrays live: the mesh, and the one table of parameter axes.

Mesh axes are `data`, `fsdp` and `tensor`, in that order. A batch is split over
(`data`, `fsdp`); parameters and optimizer state over `fsdp` and `tensor` by
`PARAMETER_AXES`. Nothing else in the program says where a parameter lies.
"""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from big_siglip.data.batch import Fields
from big_siglip.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Of each dimension: the mesh axis or axes that split it.
_Axes = tuple[str | tuple[str, ...] | None, ...]

# End of a parameter's path -> mesh axis of each of its dimensions. Of several
# rules the first counts whose axes divide their dimensions; if none do, the
# last, without those that do not. Parameters of scanned blocks have one more
# dimension, in front: the depth, which is never split.
# Attention splits over heads and the MLP over its hidden units, so that a
# `tensor` group exchanges activations once after each; `fsdp` takes a dimension
# that `tensor` left whole. A table of tokens is split by tokens: gradients come
# as rows, which a split of features would have copied into another layout.
PARAMETER_AXES: tuple[tuple[str, _Axes], ...] = (
  (
    r"(cross_)?attention/(query|key|value)/kernel",
    ("fsdp", "tensor", None),
  ),  # D,H,h
  (r"(cross_)?attention/(query|key|value)/bias", ("tensor", None)),  # H,h
  (r"(cross_)?attention/out/kernel", ("tensor", None, "fsdp")),  # H,h,D
  (r"mlp/up/kernel", ("fsdp", "tensor")),  # D,F
  (r"mlp/up/bias", ("tensor",)),  # F
  (r"mlp/down/kernel", ("tensor", "fsdp")),  # F,D
  (r"token_embedding/embedding", (("tensor", "fsdp"), None)),  # V,D
  (r"token_embedding/embedding", (None, ("fsdp", "tensor"))),  # V,D
  (r"patch_embedding/kernel", (None, None, None, ("fsdp", "tensor"))),  # pp3D
  (r"position_embedding", (None, "fsdp")),  # L,D
  (r"head/kernel", ("fsdp", "tensor")),  # D,E
  (r"logits/kernel", ("fsdp", "tensor")),  # D,V
  (r"logits/bias", ("tensor",)),  # V
)


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  slices: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns the (data, fsdp, tensor) mesh over all devices of all processes.

  Args:
    data: devices that hold a copy of the parameters each; -1 for all the rest.
    fsdp: devices that share parameters and split the batch; or -1.
    tensor: devices that share each layer's computation; or -1.
    slices: groups of devices with fast links among them and slow ones between
      (TPU slices; elsewhere processes). They divide `data`, so that between
      them gradients alone travel, and the texts of a ring loss.
    devices: None: all attached ones.

  Raises:
    UserError: the three do not cover the devices, or the slices do not divide
      `data`.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(data, fsdp, tensor, len(devices))
  # Auto: flax.linen cannot trace sharded parameters on an Explicit mesh.
  axis_types = (AxisType.Auto,) * len(AXES)
  if slices == 1:
    return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)
  if slices < 1 or shape[0] % slices:
    raise UserError(
      f"config.mesh.slices={slices}: must divide config.mesh.data={shape[0]}"
    )
  by_process = devices[0].platform != "tpu"
  try:
    grid = mesh_utils.create_hybrid_device_mesh(
      (shape[0] // slices, *shape[1:]),
      (slices, 1, 1),
      devices,
      process_is_granule=by_process,
    )
  except ValueError as error:
    groups = "processes" if by_process else "slices"
    raise UserError(
      f"config.mesh.slices={slices}: does not fit the {groups} attached "
      f"({str(error).splitlines()[0]})"
    ) from error
  return Mesh(grid, AXES, axis_types=axis_types)


def mesh_shape(
  data: int, fsdp: int, tensor: int, num_devices: int
) -> tuple[int, int, int]:
  """Returns (data, fsdp, tensor) with a single -1 replaced by what is left.

  Raises:
    UserError: the product is not the number of devices.
  """
  sizes = [data, fsdp, tensor]
  given = 1
  for size in sizes:
    given *= 1 if size == -1 else size
  if sizes.count(-1) == 1 and given > 0:
    sizes[sizes.index(-1)] = num_devices // given
  if min(sizes) < 1 or sizes[0] * sizes[1] * sizes[2] != num_devices:
    raise UserError(
      f"config.mesh: data={data} x fsdp={fsdp} x tensor={tensor} must cover "
      f"exactly the {num_devices} devices (-1, once, takes the rest)"
    )
  return tuple(sizes)


def batch_devices(mesh: Mesh) -> int:
  """Returns how many devices of a mesh share the rows of a batch."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose first dimension is the batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def abstract(fields: Fields, rows: int, mesh: Mesh | None = None) -> Any:
  """Returns what the compiler is told of a batch: nothing is allocated.

  Args:
    fields: what the batch holds.
    rows: of all processes.
    mesh: over whose batch axes the rows are split; None: of no sharding.

  Returns:
    {name: `jax.ShapeDtypeStruct` of [rows, ...]}; int64 becomes what JAX has.
  """
  split = batch_sharding(mesh) if mesh is not None else None
  return {
    name: jax.ShapeDtypeStruct(
      (rows, *field.shape),
      jax.dtypes.canonicalize_dtype(field.dtype),
      sharding=split,
    )
    for name, field in fields.items()
  }


def to_global(mesh: Mesh, batch: Any) -> Any:
  """Joins the processes' rows into arrays split over the mesh's batch axes.

  Args:
    mesh: the mesh of `make_mesh`.
    batch: a tree of numpy arrays, [rows of this process, ...] each.
  """
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


@dataclasses.dataclass(frozen=True)
class Slices:
  """How a batch is cut: each device cuts its own rows, so that none moves.

  Shape letters: B examples of the whole batch, k slices.

  Attributes:
    count: k, which divides the rows of every device.
    mesh: the devices.
    axes: mesh axes that share the batch.
  """

  count: int
  mesh: Mesh
  axes: tuple[str, ...]

  def cut(self, x: jax.Array) -> jax.Array:
    """Returns [B, ...] as [k, B / k, ...]."""
    devices = self._devices()
    x = x.reshape(devices, self.count, -1, *x.shape[1:])
    x = self._constrain(x, P(self.axes))
    x = x.swapaxes(0, 1).reshape(self.count, -1, *x.shape[3:])
    return self._constrain(x, P(None, self.axes))

  def join(self, x: jax.Array) -> jax.Array:
    """Returns [k, B / k, ...] as [B, ...], in the order before `cut`."""
    devices = self._devices()
    x = x.reshape(self.count, devices, -1, *x.shape[2:])
    x = self._constrain(x, P(None, self.axes))
    x = x.swapaxes(0, 1).reshape(-1, *x.shape[3:])
    return self._constrain(x, P(self.axes))

  def _devices(self) -> int:
    return math.prod(self.mesh.shape[axis] for axis in self.axes)

  def _constrain(self, x: jax.Array, spec: P) -> jax.Array:
    sharding = NamedSharding(self.mesh, spec)
    return jax.lax.with_sharding_constraint(x, sharding)


def state_sharding(state: Any, mesh: Mesh) -> Any:
  """Returns the sharding of every leaf of a train state, by `PARAMETER_AXES`.

  Optimizer state that mirrors a parameter lies where the parameter lies, since
  its path ends alike; any other large leaf is split over `fsdp`.

  Args:
    state: a tree of arrays or `jax.ShapeDtypeStruct`s.
    mesh: the mesh of `make_mesh`.
  """

  def leaf_sharding(path, leaf):
    spec = _parameter_spec(path_string(path), leaf.shape, mesh)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(leaf_sharding, state)


def placed(tree: Any, mesh: Mesh) -> Any:
  """Returns a tree of `jax.ShapeDtypeStruct`s with their `state_sharding`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    state_sharding(tree, mesh),
  )


def flatten(tree: Any) -> dict[str, Any]:
  """Returns {"image/encoder/norm/scale": leaf} and the like."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_string(path): leaf for path, leaf in leaves}


def path_string(path: Sequence[Any]) -> str:
  """Returns a tree path as "image/encoder/norm/scale"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  spec = None
  for pattern, axes in PARAMETER_AXES:
    if re.search(rf"(^|/){pattern}$", path):
      depth = ("blocks/" in path) * (None,)
      if len(depth + axes) == len(shape):
        spec, whole = _fitting_spec(depth + axes, shape, mesh)
        if whole:
          return spec
  return _largest_dimension_spec(shape, mesh) if spec is None else spec


def _fitting_spec(axes, shape, mesh) -> tuple[P, bool]:
  """Returns a spec of the axes that divide, and whether all of them do."""
  spec, whole = [], True
  for axis, size in zip(axes, shape, strict=True):
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    kept = []
    for name in names:
      if size % mesh.shape[name] == 0:
        size //= mesh.shape[name]
        kept.append(name)
    whole &= len(kept) == len(names)
    spec.append(kept[0] if len(kept) == 1 else tuple(kept) or None)
  return P(*spec), whole


def _largest_dimension_spec(shape, mesh, min_size: int = 2**16) -> P:
  """Splits the largest divisible dimension of a large array over `fsdp`."""
  size = 1
  for dimension in shape:
    size *= dimension
  if size >= min_size:
    for index in sorted(range(len(shape)), key=lambda i: -shape[i]):
      if shape[index] % mesh.shape["fsdp"] == 0:
        return P(*(None,) * index, "fsdp")
  return P()
