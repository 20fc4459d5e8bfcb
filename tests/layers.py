"""The rooms of the package in layers, and who imports whom.

python tests/layers.py draws the picture: a row for each room, a mark under the
number of each other one that it imports. One left of the diagonal points
upward; then it ends with 1.
"""

import ast
import functools
import gc
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "big_siglip").rglob("*.py"))

# A layer imports what stands in it or below. Each module belongs to the longest
# name that it starts with; one that none names fails.
LAYERS = (
  ("errors", "extras", "shipped", "durations", "progress", "bars"),
  ("data.batch", "data.faults"),
  ("schema", "data.cleaning"),
  (
    "config",
    "sharding",
    "platforms",
    "plan.hlo",
    "plan.chips",
    "plan.operations",
    "plan.peaks",
  ),
  ("models", "losses", "datasets", "schedules", "parameter_rules", "data"),
  ("ema", "late_start", "treatments"),
  ("optimizer", "microbatch", "objectives", "run.processes", "preparation"),
  ("train_step",),
  ("device_program",),
  ("config_files",),
  ("evaluators", "checkpoint", "command_line", "weights"),
  ("run", "metrics", "training_data", "plan.topologies", "plan.gpus"),
  ("build",),
  ("trained", "embeddings"),
  ("labels",),
  ("loop", "plan", "evaluation", "report"),
  ("api", "page"),
  ("commands",),
  ("__main__",),
)
_LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


@functools.cache
def parsed(file):
  """Returns the syntax tree of a file."""
  # Once a file, and without collections in between: after one, Python 3.11 has
  # raised SystemError (AST constructor recursion depth mismatch) here.
  gc.disable()
  try:
    return ast.parse(file.read_text())
  finally:
    gc.enable()


def imports(file):
  """Returns the full names of all that a file imports, wherever it does."""
  names = set()
  for node in ast.walk(parsed(file)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{file}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def module(file):
  """Returns the full name of a file's module."""
  parts = file.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts).removesuffix(".__init__")


def room(name):
  """Returns the room of a module, or of a name in one; None: no room's."""
  parts = name.split(".")[1:] if name.startswith("big_siglip.") else []
  names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
  return next((name for name in names if name in _LAYER), None)


def layer(name):
  """Returns the number of the layer of a module, or of a name in one."""
  return _LAYER.get(room(name))


def arrows():
  """Returns {room: the other rooms that it imports}."""
  found = {name: set() for name in _LAYER}
  for file in PACKAGE:
    if own := room(module(file)):
      found[own] |= {room(name) for name in imports(file)} - {own, None}
  return found


def picture():
  """Returns (names of the rooms from the top down, rows of marks).

  Row i has an "x" in column j where room i imports room j. In a layer, who
  imports another room stands above it.
  """
  found = arrows()
  order = []
  for names in reversed(LAYERS):
    left = list(names)
    while left:
      free = [n for n in left if not any(n in found[other] for other in left)]
      order += free or left
      left = [n for n in left if n not in order]
  rows = [["x" if o in found[name] else "." for o in order] for name in order]
  return order, rows


def _draw():
  """Prints the picture; returns how many arrows point upward."""
  order, rows = picture()
  width = max(map(len, order)) + 3
  for digits in zip(*(f"{i:2}" for i in range(1, len(order) + 1)), strict=True):
    print(" " * (width + 2) + "".join(digits))
  upward = 0
  for i, (name, marks) in enumerate(zip(order, rows, strict=True)):
    upward += marks[:i].count("x")
    marks[i] = "\\"
    print(f"{i + 1:2} {name:{width - 2}} {''.join(marks)}")
  count = sum(marks.count("x") for marks in rows)
  print(f"{len(order)} rooms, {count} arrows, {upward or 'none'} upward")
  return upward


if __name__ == "__main__":
  sys.exit(_draw() > 0)
