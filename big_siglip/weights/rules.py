"""One table entry for every array of another project: where it goes, and how.

Our paths are those of an unrolled model ("image/encoder/block_3/..."); in a
scanned one all blocks of a parameter lie stacked in "image/encoder/blocks/...".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import math
import os
import re
from typing import Any, NamedTuple, Protocol

import jax
import ml_dtypes
import numpy as np

from big_siglip import progress
from big_siglip.errors import raise_problems, UserError
from big_siglip.sharding import path_string
from big_siglip.weights import matching
from big_siglip.weights.tensors import new_array

Shape = tuple[int, ...]
# (key, shape, function that returns the float32 array) of each array.
Tensors = Iterator[tuple[str, Shape, Callable[[], np.ndarray]]]


class Reader(Protocol):
  """Arrays in a file, each read when asked for."""

  path: str

  def shapes(self) -> Mapping[str, Shape]:
    """Returns {key: shape} of all arrays; reads none."""

  def read(self, key: str) -> np.ndarray:
    """Returns one array, valid until the thread's next call."""


class Layout(NamedTuple):
  """How another project stores a parameter of ours.

  Attributes:
    shape: our shape -> theirs.
    read: (their array, our shape) -> ours.
    write: our array -> theirs.
  """

  shape: Callable[[Shape], Shape]
  read: Callable[[np.ndarray, Shape], np.ndarray]
  write: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda s: s, lambda a, s: a, lambda a: a)
FLAT = Layout(
  lambda s: (math.prod(s),),
  lambda a, s: a.reshape(s),
  lambda a: a.reshape(-1),
)
# With a leading axis of one; so are scalars.
LEADING = Layout(lambda s: (1, *s), lambda a, s: a[0], lambda a: a[None])


def linear(inputs: int) -> Layout:
  """PyTorch's [outputs, inputs] of a kernel whose first axes are inputs."""

  def shape(s: Shape) -> Shape:
    return math.prod(s[inputs:]), math.prod(s[:inputs])

  def write(a: np.ndarray) -> np.ndarray:
    return a.reshape(math.prod(a.shape[:inputs]), -1).T

  return Layout(shape, lambda a, s: a.T.reshape(s), write)


# Ours is height, width, colour, output.
CONV = Layout(
  lambda s: (s[3], s[2], s[0], s[1]),
  lambda a, s: a.transpose(2, 3, 1, 0),
  lambda a: a.transpose(3, 2, 0, 1),
)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One array of another project.

  Attributes:
    key: its name there.
    paths: our parameters in it, one below the other (along its first axis) if
      there are several.
    layout: of each.
    stacked: several are stacked along a new first axis instead.
  """

  key: str
  paths: tuple[str, ...]
  layout: Layout = SAME
  stacked: bool = False


def rule(key: str, path: str, layout: Layout = SAME) -> Rule:
  """Returns the rule of an array that is one parameter."""
  return Rule(key, (path,), layout)


def read_params(
  reader: Reader,
  rules: Sequence[Rule],
  abstract: Any,
  notes: Sequence[str] = (),
) -> Any:
  """Returns our parameters, each array on its devices as soon as it is read.

  Never holds more in host memory than one parameter beside what is finished.

  Args:
    reader: the file.
    rules: of every array in it.
    abstract: tree of `jax.ShapeDtypeStruct`s with shardings.
    notes: what was done to the names; said before what is wrong with them.

  Raises:
    UserError: naming every array that is missing, surplus or of another shape,
      or the first with a number that is not finite.
  """
  arrays = _Arrays(reader, rules, _unstacked_shapes(abstract), notes)

  def load(key, leaf):
    path = path_string(key)
    count = leaf.shape[0] if leaf.shape else 1
    made: dict[str, np.ndarray] = {}  # Replicas are read once.

    def shard(index: tuple[slice, ...]) -> np.ndarray:
      if str(index) not in made:
        shape = leaf.sharding.shard_shape(leaf.shape)
        made[str(index)] = new_array(shape, leaf.dtype)
        arrays.copy_to(made[str(index)], path, count, index)
      return made[str(index)]

    array = jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)
    show.add(1)
    return array

  with progress.Progress(len(jax.tree.leaves(abstract)), "arrays") as show:
    return jax.tree_util.tree_map_with_path(load, abstract)


class _Arrays:
  """The arrays of a file, by our names."""

  def __init__(self, reader: Reader, rules: Sequence[Rule], shapes, notes):
    """Checks that the file holds what the rules name, and nothing else."""
    _check(reader, rules, shapes, notes)
    self._reader = reader
    self._shapes = shapes
    self._where = {
      path: (one, position)
      for one in rules
      for position, path in enumerate(one.paths)
    }

  def copy_to(self, result: np.ndarray, path: str, count: int, index) -> None:
    """Writes what `index` cuts out of a parameter; `count` blocks, if any."""
    blocks = list(_blocks(path, (count,)))
    if blocks == [path]:
      result[...] = self._parameter(path)[index]
      return
    first, _ = self._where[blocks[0]]
    if first.stacked:  # As ours: no layout changes within it.
      result[...] = self._read(first.key)[index]
      return

    def copy_row(row: int, block: str) -> None:
      result[row] = self._parameter(block)[index[1:]]

    mine = blocks[index[0]]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(copy_row, range(len(mine)), mine))

  def _parameter(self, path: str) -> np.ndarray:
    """Returns an unstacked parameter of ours, whole."""
    one, position = self._where[path]
    array = self._read(one.key)
    if array.size == 1:  # A scalar, of shape [] or [1].
      array = array.reshape(_their_shape(one, self._shapes))
    if path == "logit_scale":
      matching.check_scale(array.item(), f"{self._reader.path}: {one.key}")
    if one.stacked:
      array = array[position]
    elif len(one.paths) > 1:
      rows = [one.layout.shape(self._shapes[path])[0] for path in one.paths]
      start = sum(rows[:position])
      array = array[start : start + rows[position]]
    return one.layout.read(array, self._shapes[path])

  def _read(self, key: str) -> np.ndarray:
    array = self._reader.read(key)
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
      raise UserError(
        f"{self._reader.path}: {key} holds {array.dtype}, must hold floats"
      )
    # NaN is both smallest and largest; faster than asking every number.
    if array.size and not np.isfinite([array.min(), array.max()]).all():
      raise UserError(
        f"{self._reader.path}: {key} holds numbers that are not finite"
      )
    return array


def write_params(params: Any, rules: Sequence[Rule]) -> Tensors:
  """Yields the arrays of another project; none is made before it is asked for.

  Raises:
    UserError: a parameter that no rule takes.
  """
  shapes = _unstacked_shapes(params)
  taken = {path for one in rules for path in one.paths}
  raise_problems(
    [
      f"{path}: this format has no place for it"
      for path in sorted(shapes.keys() - taken)
    ]
  )
  leaves = {
    path_string(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def ours(path: str) -> np.ndarray:
    if path in leaves:
      return np.asarray(leaves[path])
    stacked, index = _stacked_path(path)
    return np.asarray(leaves[stacked][index])

  for one in rules:

    def array(one=one):
      parts = [one.layout.write(ours(path)) for path in one.paths]
      if one.stacked:
        return np.stack(parts)
      return np.concatenate(parts) if len(parts) > 1 else parts[0]

    yield one.key, _their_shape(one, shapes), array


def _check(reader: Reader, rules: Sequence[Rule], shapes, notes) -> None:
  wanted = {one.key: _their_shape(one, shapes) for one in rules}
  taken = {path for one in rules for path in one.paths}
  assert taken == shapes.keys(), sorted(taken ^ shapes.keys())
  found = matching.problems(reader.shapes(), wanted, notes)
  raise_problems([f"{reader.path}: {line}" for line in found])


def _their_shape(one: Rule, shapes: Mapping[str, Shape]) -> Shape:
  parts = [one.layout.shape(tuple(shapes[path])) for path in one.paths]
  if one.stacked:
    return (len(parts), *parts[0])
  return (
    (sum(part[0] for part in parts), *parts[0][1:])
    if len(parts) > 1
    else parts[0]
  )


def _unstacked_shapes(params: Any) -> dict[str, Shape]:
  shapes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = path_string(path)
    blocks = list(_blocks(path, leaf.shape))
    inner = leaf.shape if blocks == [path] else leaf.shape[1:]
    shapes.update(dict.fromkeys(blocks, tuple(inner)))
  return shapes


def _blocks(path: str, shape: Shape) -> Iterable[str]:
  """Returns the unstacked paths of a parameter."""
  if "/blocks/" not in path:
    return [path]
  return [
    path.replace("/blocks/", f"/block_{index}/") for index in range(shape[0])
  ]


def _stacked_path(path: str) -> tuple[str, int]:
  before, number, after = re.split(r"/block_(\d+)/", path, maxsplit=1)
  return f"{before}/blocks/{after}", int(number)
