"""The positions of patches on grids of any size, as ONNX operators.

The formula is that of `models.positions`: of integers but for its last
division, so that runtimes cannot differ in it.

Shape letters: B images, L places of a sequence, D width.
"""

import numpy as np

from big_siglip.weights.onnx_graph import Graph


def resample(graph: Graph, grid: str, length: int, base: int) -> str:
  """Returns the positions of each image's patches, BLD.

  Args:
    graph: what it is added to.
    grid: [B, 2], rows and columns.
    length: L.
    base: rows and columns that were learned.
  """
  one = graph.constant(1)
  grid = graph.op("Max", grid, one)
  rows, columns = (
    graph.op("Gather", grid, graph.constant([i]), axis=1) for i in (0, 1)
  )
  place = graph.constant(np.arange(length)[None])
  inside = graph.op("Less", place, graph.op("Mul", rows, columns))
  place = graph.op("Where", inside, place, graph.constant(0))
  row = graph.op("Div", place, columns)
  column = graph.op("Sub", place, graph.op("Mul", row, columns))
  learned = graph.constant(np.arange(base)[None, None])

  def weights(index: str, n: str) -> str:
    """Returns [B, L, base], the formula of `models.positions` in integers."""
    index = graph.op("Unsqueeze", index, graph.constant([2]))
    n = graph.op("Unsqueeze", n, graph.constant([2]))
    two, side = graph.constant(2), graph.constant(base)
    at = graph.op("Add", graph.op("Mul", index, two), one)
    at = graph.op("Sub", graph.op("Mul", at, side), n)
    of = graph.op("Mul", graph.op("Mul", n, two), learned)
    distance = graph.op("Abs", graph.op("Sub", of, at))
    most = graph.op("Mul", graph.op("Max", n, side), two)
    found = graph.op("Sub", most, distance)
    found = graph.op("Max", found, graph.constant(0))
    found = graph.op("Cast", found, to=1)  # float32
    total = graph.op("ReduceSum", found, graph.constant([2]), keepdims=1)
    return graph.op("Div", found, total)

  down = graph.op("Unsqueeze", weights(row, rows), graph.constant([3]))
  across = graph.op("Unsqueeze", weights(column, columns), graph.constant([2]))
  both = graph.op("Mul", down, across)
  both = graph.op("Reshape", both, graph.constant([0, 0, base * base]))
  table = graph.parameter("image/position_embedding")
  return graph.op("MatMul", both, table)
