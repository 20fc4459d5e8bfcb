"""Towers as ONNX graphs, which run without JAX and without our code.

A graph is written by hand, operator by operator: a tower has a dozen of them,
and each becomes the one that runtimes know how to fuse. Opset 20 is the first
with GELU; it and IR 9 are of 2023, and onnxruntime 1.19 and 1.32 run them.
Parameters lie in a file of their own, for a graph may hold 2 GiB at most.

Shape letters: B batch, H and W pixels, L tokens, D width, E embedding.
"""

from collections.abc import Mapping
import pathlib
import re
from typing import Any, BinaryIO

import jax
import numpy as np

from big_siglip import extras
from big_siglip.errors import UserError
from big_siglip.models.norm import EPSILON
from big_siglip.schema import sizes
from big_siglip.sharding import path_string

OPSET, IR = 20, 9
_HEAD = "classifier"  # Beside the towers among the parameters.
_PAGE = 4096  # Runtimes map parameters into memory by pages.


def save(
  file: pathlib.Path,
  tower: str,
  params: Any,
  model: Any,
  metadata: Mapping[str, str],
  head: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
  """Writes a tower as FILE.onnx, and its parameters as FILE.onnx.data.

  The image tower reads `pixel_values`, float32 [B, 3, H, W], normalized as
  transformers' image processor gives them, and writes `image_embeds`, float32
  [B, E] of length 1. The text tower reads `input_ids`, int64 [B, L], and writes
  `text_embeds`. B is any.

  Args:
    file: to be made.
    tower: "image" or "text".
    params: of a plain `SigLIP`.
    model: `config.model`.
    metadata: said in the file, with the versions of the format.
    head: a classifier on the embeddings of images, weights EC and bias C: then
      `probabilities`, float32 [B, C], are written, too.

  Raises:
    UserError: see `check`.
  """
  onnx = check(model)
  data = file.with_name(f"{file.name}.data")
  if head is not None:
    kernel, bias = head
    params = {**params, _HEAD: {"kernel": kernel, "bias": bias}}
  with data.open("wb") as stream:
    graph = _Graph(onnx, params, stream, data.name)
    build = _image if tower == "image" else _text
    build(graph, model)
    if head is not None:
      logits = _dense(graph, f"{tower}_embeds", _HEAD)
      x = graph.op("Softmax", logits, name="probabilities", axis=-1)
      graph.value("outputs", x, "FLOAT", len(head[1]))
    graph.check(tower)
  made = onnx.helper.make_model(
    graph.finish(tower),
    producer_name="big_siglip",
    opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    ir_version=IR,
  )
  stated = {**metadata, "opset": str(OPSET), "ir_version": str(IR)}
  onnx.helper.set_model_props(made, {**stated, "onnx": onnx.__version__})
  onnx.save_model(made, file)


def check(model: Any) -> Any:
  """Returns the library.

  Raises:
    UserError: it is not installed, or a tower has no vector of a sequence.
  """
  for tower in ("image", "text"):
    if model[tower].pooling == "none":
      raise UserError(
        f"config.model.{tower}.pooling='none': there is no embedding to export"
      )
  with extras.needed_by("--format=onnx"):
    import onnx
    import onnx.helper
  return onnx


class _Graph:
  """A graph as it grows; parameters are written as soon as they are named."""

  def __init__(self, onnx: Any, params: Any, stream: BinaryIO, location: str):
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
    names = (f"{tower}/", f"{_HEAD}/")
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


def _image(graph: _Graph, model: Any) -> None:
  size, side = sizes.resolve_image(model.image), model.image.image_size
  width, patch = size.width, size.patch_size
  x = graph.value("inputs", "pixel_values", "FLOAT", 3, side, side)
  name = "image/patch_embedding"
  x = graph.op(
    "Conv",
    x,
    graph.parameter(f"{name}/kernel", axes=(3, 2, 0, 1)),
    graph.parameter(f"{name}/bias"),
    strides=[patch, patch],
  )
  x = graph.op("Reshape", x, graph.constant([0, width, -1]))
  x = graph.op("Transpose", x, perm=[0, 2, 1])  # BLD
  _finish(graph, _encode(graph, x, "image", size, model), "image", model)


def _text(graph: _Graph, model: Any) -> None:
  ids = graph.value("inputs", "input_ids", "INT64", model.text.length)
  table = graph.parameter("text/token_embedding/embedding")
  x = graph.op("Gather", table, ids)
  size = sizes.resolve_text(model.text)
  _finish(graph, _encode(graph, x, "text", size, model), "text", model)


def _encode(graph, x: str, tower: str, size, model) -> str:
  """Returns one vector of each sequence, BLD -> BD; see `pooling.encode`."""
  pooling = model[tower].pooling
  if pooling == "cls":
    token = graph.parameter(f"{tower}/class_token", (1, 1, size.width))
    batch = graph.op("Shape", x, start=0, end=1)
    shape = graph.op("Concat", batch, graph.constant([1, size.width]), axis=0)
    x = graph.op("Concat", graph.op("Expand", token, shape), x, axis=1)
  x = graph.op("Add", x, graph.parameter(f"{tower}/position_embedding"))
  for index in range(size.depth):
    block = f"{tower}/encoder/block_{index}"
    y = _norm(graph, x, f"{block}/attention_norm")
    y = _attention(graph, y, y, f"{block}/attention", size)
    x = graph.op("Add", x, y)
    y = _norm(graph, x, f"{block}/mlp_norm")
    x = graph.op("Add", x, _mlp(graph, y, f"{block}/mlp"))
  x = _norm(graph, x, f"{tower}/encoder/norm")
  if pooling == "map":
    probe = graph.parameter(f"{tower}/pool/probe")
    x = _attention(graph, probe, x, f"{tower}/pool/attention", size)
    y = _norm(graph, x, f"{tower}/pool/norm")
    x = graph.op("Add", x, _mlp(graph, y, f"{tower}/pool/mlp"))
  if pooling in ("gap", "mean"):
    return graph.op("ReduceMean", x, graph.constant([1]), keepdims=0)
  last = pooling == "last"
  return graph.op("Gather", x, graph.constant(-1 if last else 0), axis=1)


def _finish(graph: _Graph, x: str, tower: str, model: Any) -> None:
  """Applies the head, and brings the vectors to length 1; BD -> BE."""
  if model[tower].head:
    x = _dense(graph, x, f"{tower}/head", bias=tower == "text")
  length = graph.op("ReduceL2", x, graph.constant([-1]), keepdims=1)
  length = graph.op("Add", length, graph.constant(np.float32(1e-8)))
  x = graph.op("Div", x, length, name=f"{tower}_embeds")
  width = model.embed_dim or sizes.resolve_image(model.image).width
  graph.value("outputs", x, "FLOAT", width)


def _attention(graph, x: str, context: str, path: str, size) -> str:
  """Lets the tokens `x` look at the tokens `context`; BQD, BKD -> BQD."""
  width, heads = size.width, size.num_heads

  def project(tokens, name, perm):
    y = _dense(graph, tokens, f"{path}/{name}", (width, width))
    y = graph.op("Reshape", y, graph.constant([0, 0, heads, -1]))
    return graph.op("Transpose", y, perm=perm)

  query = project(x, "query", [0, 2, 1, 3])
  key = project(context, "key", [0, 2, 3, 1])
  value = project(context, "value", [0, 2, 1, 3])
  scale = np.float32((width // heads) ** -0.5)
  query = graph.op("Mul", query, graph.constant(scale))
  weights = graph.op("Softmax", graph.op("MatMul", query, key), axis=-1)
  y = graph.op("MatMul", weights, value)
  y = graph.op("Transpose", y, perm=[0, 2, 1, 3])
  y = graph.op("Reshape", y, graph.constant([0, 0, -1]))
  return _dense(graph, y, f"{path}/out", (width, width))


def _mlp(graph: _Graph, x: str, path: str) -> str:
  x = _dense(graph, x, f"{path}/up")
  x = graph.op("Gelu", x, approximate="tanh")
  return _dense(graph, x, f"{path}/down")


def _dense(graph: _Graph, x: str, path: str, shape=None, bias=True) -> str:
  """Multiplies by a kernel, as a matrix of some shape, and adds a bias."""
  x = graph.op("MatMul", x, graph.parameter(f"{path}/kernel", shape))
  if not bias:
    return x
  return graph.op("Add", x, graph.parameter(f"{path}/bias", (-1,)))


def _norm(graph: _Graph, x: str, path: str) -> str:
  scale = graph.parameter(f"{path}/scale")
  bias = graph.parameter(f"{path}/bias")
  return graph.op("LayerNormalization", x, scale, bias, epsilon=EPSILON)
