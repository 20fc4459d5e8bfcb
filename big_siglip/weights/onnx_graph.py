"""An ONNX graph as it is written, operator by operator."""

import re
from typing import Any, BinaryIO

import jax
import numpy as np

from big_siglip.sharding import path_string

HEAD = "classifier"  # Beside the towers among the parameters.
_PAGE = 4096  # Runtimes map parameters into memory by pages.


class Graph:
  """A graph as it grows; parameters are written as soon as they are named."""

  def __init__(self, onnx: Any, params: Any, stream: BinaryIO, location: str):
    """Holds nothing yet.

    Args:
      onnx: the library.
      params: of a plain `SigLIP`.
      stream: to which parameters are written.
      location: what the file of `stream` is called.
    """
    self._onnx, self._stream, self._location = onnx, stream, location
    self._leaves = {
      path_string(path): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    self._taken: set[str] = set()
    self._nodes: list[Any] = []
    self._tensors: dict[str, Any] = {}
    self._values: dict[str, list[Any]] = {"inputs": [], "outputs": []}

  def op(self, kind: str, *inputs: str, name: str = "", **attributes) -> str:
    """Adds an operator; returns the name of what it makes."""
    name = name or f"{kind}_{len(self._nodes)}"
    self._nodes.append(
      self._onnx.helper.make_node(kind, inputs, [name], name, **attributes)
    )
    return name

  def value(self, side: str, name: str, kind: str, *shape: int) -> str:
    """Adds an input or an output, whose first dimension is any."""
    made = self._onnx.helper.make_tensor_value_info(
      name, getattr(self._onnx.TensorProto, kind), ["batch", *shape]
    )
    self._values[side].append(made)
    return name

  def constant(self, value: Any) -> str:
    """Returns the name of a small array."""
    array = np.asarray(value)
    name = f"{array.dtype}{array.tolist()}".replace(" ", "")
    self._tensors[name] = self._onnx.numpy_helper.from_array(array, name)
    return name

  def parameter(self, path: str, shape=None, axes=None) -> str:
    """Returns the name of a parameter, with its axes moved or another shape."""
    array = np.asarray(self._read(path), np.float32)
    array = array if axes is None else array.transpose(axes)
    array = np.ascontiguousarray(
      array if shape is None else array.reshape(shape)
    )
    self._stream.write(b"\0" * (-self._stream.tell() % _PAGE))
    tensor = self._onnx.TensorProto(
      name=path,
      data_type=self._onnx.TensorProto.FLOAT,
      dims=array.shape,
      data_location=self._onnx.TensorProto.EXTERNAL,
    )
    for key, value in (
      ("location", self._location),
      ("offset", self._stream.tell()),
      ("length", array.nbytes),
    ):
      tensor.external_data.add(key=key, value=str(value))
    array.tofile(self._stream)
    self._tensors[path] = tensor
    return path

  def _read(self, path: str) -> Any:
    """Returns a parameter, which may lie stacked with those of all blocks."""
    if path in self._leaves:
      self._taken.add(path)
      return self._leaves[path]
    block = re.search(r"/block_(\d+)/", path)
    assert block, path
    stacked = path.replace(block[0], "/blocks/")
    self._taken.add(stacked)
    return self._leaves[stacked][int(block[1])]

  def check(self, tower: str) -> None:
    """Checks that no parameter of a tower was left out."""
    names = (f"{tower}/", f"{HEAD}/")
    mine = {path for path in self._leaves if path.startswith(names)}
    assert mine == self._taken, sorted(mine ^ self._taken)

  def finish(self, name: str) -> Any:
    """Returns the graph."""
    return self._onnx.helper.make_graph(
      self._nodes,
      name,
      self._values["inputs"],
      self._values["outputs"],
      list(self._tensors.values()),
    )
