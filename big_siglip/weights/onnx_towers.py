"""Towers as ONNX graphs, which run without JAX and without our code.

A graph is written by hand, operator by operator: a tower has a dozen of them,
and each becomes the one that runtimes know how to fuse. Opset 20 is the first
with GELU; it and IR 9 are of 2023, and onnxruntime 1.19 and 1.32 run them.
Parameters lie in a file of their own, for a graph may hold 2 GiB at most.

Shape letters: B batch, H and W pixels, L tokens, D width, E embedding.
"""

from collections.abc import Mapping
import pathlib
from typing import Any, NamedTuple

import numpy as np

from big_siglip import extras
from big_siglip.errors import UserError
from big_siglip.models.norm import EPSILON
from big_siglip.schema import sizes
from big_siglip.weights import onnx_positions
from big_siglip.weights.onnx_graph import Graph, HEAD

OPSET, IR = 20, 9


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
  [B, E] of length 1. That of a NaFlex model reads what their processor of these
  gives: `pixel_values`, float32 [B, N, p * p * 3], `pixel_attention_mask`,
  int64 [B, N], 1 for patches, and `spatial_shapes`, int64 [B, 2], rows and
  columns; N is `max_patches`. The text tower reads `input_ids`, int64 [B, L],
  and writes `text_embeds`. B is any.

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
    params = {**params, HEAD: {"kernel": kernel, "bias": bias}}
  with data.open("wb") as stream:
    graph = Graph(onnx, params, stream, data.name)
    build = _image if tower == "image" else _text
    build(graph, model)
    if head is not None:
      logits = _dense(graph, f"{tower}_embeds", HEAD)
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


class _Sequence(NamedTuple):
  """What an encoder is told of its sequences.

  Attributes:
    positions: what is added to the tokens; LD, or BLD.
    real: float32 [B, L], 1 for tokens and 0 for padding; None: all are tokens.
    bias: float32 [B, 1, 1, L], what is added to scores; None: nothing.
  """

  positions: str
  real: str | None = None
  bias: str | None = None


def _image(graph: Graph, model: Any) -> None:
  if model.image.max_patches is not None:
    _patches(graph, model)
    return
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
  sequence = _Sequence(graph.parameter("image/position_embedding"))
  x = _encode(graph, x, "image", size, model, sequence)
  _finish(graph, x, "image", model)


def _patches(graph: Graph, model: Any) -> None:
  """Builds the image tower of a NaFlex model."""
  size, length = sizes.resolve_image(model.image), model.image.max_patches
  numbers = 3 * (size.patch_size or 0) ** 2
  x = graph.value("inputs", "pixel_values", "FLOAT", length, numbers)
  mask = graph.value("inputs", "pixel_attention_mask", "INT64", length)
  grid = graph.value("inputs", "spatial_shapes", "INT64", 2)
  x = _dense(graph, x, "image/patch_embedding", (numbers, size.width))
  is_real = graph.op("Greater", mask, graph.constant(0))
  bias = graph.op(
    "Where",
    is_real,
    graph.constant(np.float32(0)),
    graph.constant(np.finfo(np.float32).min),
  )
  sequence = _Sequence(
    onnx_positions.resample(graph, grid, length, sizes.grid_side(model.image)),
    graph.op("Cast", is_real, to=1),  # float32
    graph.op("Unsqueeze", bias, graph.constant([1, 2])),
  )
  x = _encode(graph, x, "image", size, model, sequence)
  _finish(graph, x, "image", model)


def _text(graph: Graph, model: Any) -> None:
  ids = graph.value("inputs", "input_ids", "INT64", model.text.length)
  table = graph.parameter("text/token_embedding/embedding")
  x = graph.op("Gather", table, ids)
  size = sizes.resolve_text(model.text)
  sequence = _Sequence(graph.parameter("text/position_embedding"))
  x = _encode(graph, x, "text", size, model, sequence)
  _finish(graph, x, "text", model)


def _encode(graph, x: str, tower: str, size, model, sequence: _Sequence) -> str:
  """Returns one vector of each sequence, BLD -> BD; see `pooling.encode`."""
  pooling = model[tower].pooling
  if pooling == "cls":
    token = graph.parameter(f"{tower}/class_token", (1, 1, size.width))
    batch = graph.op("Shape", x, start=0, end=1)
    shape = graph.op("Concat", batch, graph.constant([1, size.width]), axis=0)
    x = graph.op("Concat", graph.op("Expand", token, shape), x, axis=1)
  x = graph.op("Add", x, sequence.positions)
  for index in range(size.depth):
    block = f"{tower}/encoder/block_{index}"
    y = _norm(graph, x, f"{block}/attention_norm")
    y = _attention(graph, y, y, f"{block}/attention", size, sequence.bias)
    x = graph.op("Add", x, y)
    y = _norm(graph, x, f"{block}/mlp_norm")
    x = graph.op("Add", x, _mlp(graph, y, f"{block}/mlp"))
  x = _norm(graph, x, f"{tower}/encoder/norm")
  if pooling == "map":
    probe = graph.parameter(f"{tower}/pool/probe")
    path = f"{tower}/pool/attention"
    x = _attention(graph, probe, x, path, size, sequence.bias)
    y = _norm(graph, x, f"{tower}/pool/norm")
    x = graph.op("Add", x, _mlp(graph, y, f"{tower}/pool/mlp"))
  if sequence.real is not None and pooling == "gap":
    return _mean(graph, x, sequence.real)
  if pooling in ("gap", "mean"):
    return graph.op("ReduceMean", x, graph.constant([1]), keepdims=0)
  last = pooling == "last"
  return graph.op("Gather", x, graph.constant(-1 if last else 0), axis=1)


def _mean(graph: Graph, x: str, real: str) -> str:
  """Returns the mean of tokens that are no padding, BLD -> BD."""
  total = graph.op(
    "MatMul", graph.op("Unsqueeze", real, graph.constant([1])), x
  )
  total = graph.op("Squeeze", total, graph.constant([1]))
  count = graph.op("ReduceSum", real, graph.constant([1]), keepdims=1)
  return graph.op("Div", total, count)


def _finish(graph: Graph, x: str, tower: str, model: Any) -> None:
  """Applies the head, and brings the vectors to length 1; BD -> BE."""
  if model[tower].head:
    x = _dense(graph, x, f"{tower}/head", bias=tower == "text")
  length = graph.op("ReduceL2", x, graph.constant([-1]), keepdims=1)
  length = graph.op("Add", length, graph.constant(np.float32(1e-8)))
  x = graph.op("Div", x, length, name=f"{tower}_embeds")
  width = model.embed_dim or sizes.resolve_image(model.image).width
  graph.value("outputs", x, "FLOAT", width)


def _attention(
  graph, x: str, context: str, path: str, size, bias: str | None
) -> str:
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
  scores = graph.op("MatMul", query, key)
  if bias is not None:
    scores = graph.op("Add", scores, bias)
  weights = graph.op("Softmax", scores, axis=-1)
  y = graph.op("MatMul", weights, value)
  y = graph.op("Transpose", y, perm=[0, 2, 1, 3])
  y = graph.op("Reshape", y, graph.constant([0, 0, -1]))
  return _dense(graph, y, f"{path}/out", (width, width))


def _mlp(graph: Graph, x: str, path: str) -> str:
  x = _dense(graph, x, f"{path}/up")
  x = graph.op("Gelu", x, approximate="tanh")
  return _dense(graph, x, f"{path}/down")


def _dense(graph: Graph, x: str, path: str, shape=None, bias=True) -> str:
  """Multiplies by a kernel, as a matrix of some shape, and adds a bias."""
  x = graph.op("MatMul", x, graph.parameter(f"{path}/kernel", shape))
  if not bias:
    return x
  return graph.op("Add", x, graph.parameter(f"{path}/bias", (-1,)))


def _norm(graph: Graph, x: str, path: str) -> str:
  scale = graph.parameter(f"{path}/scale")
  bias = graph.parameter(f"{path}/bias")
  return graph.op("LayerNormalization", x, scale, bias, epsilon=EPSILON)
