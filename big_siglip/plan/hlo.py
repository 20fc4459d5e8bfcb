"""Reads what a compiler says of its program: what loops multiply, memory.

The TPU compiler writes `estimated_cycles` beside every operation that it timed;
an operation in a loop's body is written once and runs as often as the loop
turns. Of a conditional's branches one runs: the dearest counts. What a program
does in exceptional cases alone, `jax.named_scope("exception")`, does not.
"""

from collections import Counter
import dataclasses
import math
import re
from typing import Any

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_EXCEPTION = re.compile(r'op_name="[^"]*/exception/')
_KERNEL = 'custom_call_target="tpu_custom_call"'
_CALLED = re.compile(r"\b(?:to_apply|calls|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
  r"\b(?:branch_computations=\{([^}]*)\}"
  r"|(?:true|false)_computation=(%?[\w.\-]+))"
)
_LOOP = re.compile(r"\bwhile\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_COMPARE = re.compile(r"ROOT .* compare\((.*?)\), direction=(LT|LE|GT|GE|NE)\b")
_COLLECTIVE = re.compile(
  r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|"
  r"collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
# What the TPU compiler says where a program does not fit, in its two ways.
_OUT_OF_MEMORY = re.compile(
  r"(?:Used |for HLO temporaries \()([\d.]+)([KMGT])\)? (?:of|exceeds)"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass
class Costs:
  """What a program does in one run on one device.

  Attributes:
    cycles: the sum of `estimated_cycles`; 0 where the compiler wrote none.
    optional_cycles: of these, what is saved where each conditional takes its
      cheapest branch instead.
    kernel_calls: how often hand-written (Pallas) kernels run: the compiler
      does not time them.
    collectives: {kind: (how often, bytes of the results)}.
  """

  cycles: int = 0
  optional_cycles: int = 0
  kernel_calls: int = 0
  collectives: dict[str, tuple[int, int]] = dataclasses.field(
    default_factory=dict
  )


def costs(text: str) -> Costs:
  """Sums a compiled program's costs, loops multiplied by their turns.

  Args:
    text: `compiled.as_text()`.

  Raises:
    ValueError: a loop's number of turns cannot be read.
  """
  computations, entry = _split(text)
  sums = _sums(computations, entry, inside_fusion=False)
  kinds = sorted(name[1] for name in sums if name[0] == "times")
  return Costs(
    cycles=sums["cycles"],
    optional_cycles=sums["cycles"] - sums["least"],
    kernel_calls=sums["kernels"],
    collectives={k: (sums["times", k], sums["bytes", k]) for k in kinds},
  )


def _sums(
  computations: dict[str, list[str]], name: str, inside_fusion: bool
) -> Counter:
  """Returns what one run of a computation, and of all that it calls, adds."""
  sums = Counter()
  for line in computations.get(name, ()):
    if _EXCEPTION.search(line):
      continue
    if not inside_fusion and (cycles := _CYCLES.search(line)):
      sums.update(cycles=int(cycles[1]), least=int(cycles[1]))
    if _KERNEL in line:
      sums["kernels"] += 1
    if collective := _COLLECTIVE.search(line):
      sums["times", collective[2]] += 1
      sums["bytes", collective[2]] += _largest_array(collective[1])
    if loop := _LOOP.search(line):
      turns = _trips(line, computations[loop[1]])
      body = _sums(computations, loop[2], False)
      sums.update({what: turns * count for what, count in body.items()})
      continue
    fused = inside_fusion or " fusion(" in line
    for callee in _CALLED.findall(line):
      sums.update(_sums(computations, callee, fused))
    names = ", ".join("".join(found) for found in _BRANCHES.findall(line))
    branches = [
      _sums(computations, branch, fused)
      for branch in re.findall(r"[\w.\-]+", names)
    ]
    if branches:
      dearest = max(branches, key=lambda x: (x["cycles"], x.total()))
      sums.update(dearest)
      sums["least"] += min(x["least"] for x in branches) - dearest["least"]
  return sums


def wanted_bytes(message: str) -> int | None:
  """Returns how many bytes of a chip a program asked for that did not fit.

  They are of its temporaries alone where the compiler gave up early.

  Args:
    message: of the compiler's error; None is returned of any other one.
  """
  if not (found := _OUT_OF_MEMORY.search(message)):
    return None
  return round(float(found[1]) * _UNITS[found[2]])


def _split(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns the lines of each computation, and the name of the first to run."""
  computations: dict[str, list[str]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if line.rstrip() == "}":  # Strings of several lines may begin with one.
      current = None
    elif current is None and (start := _COMPUTATION.match(line)):
      current = computations.setdefault(start[2], [])
      entry = start[2] if start[1] else entry
    elif current is not None:
      current.append(line)
  return computations, entry


def _trips(line: str, condition: list[str]) -> int:
  if known := _TRIPS.search(line):
    return int(known[1])
  constants = {
    found[1]: found[2] for x in condition if (found := _CONSTANT.search(x))
  }
  for x in condition:
    compared = _COMPARE.search(x)
    if compared:
      names = re.findall(r"%?([\w.\-]+)", compared[1])
      limits = [int(constants[name]) for name in names if name in constants]
      if len(limits) == 1:
        return limits[0] + (compared[2] in ("LE", "GE"))
  raise ValueError(f"cannot read how often a loop turns: {condition[-1]}")


def _largest_array(shape: str) -> int:
  """Returns bytes; an asynchronous start's tuple holds operand and result."""
  sizes = [0]
  for dtype, dimensions in _ARRAY.findall(shape):
    bits = int("".join(re.findall(r"\d+", dtype)[:1]) or 8)
    count = math.prod(int(d) for d in dimensions.split(",") if d)
    sizes.append(count * bits // 8)
  return max(sizes)


def peak_bytes(stats: Any, platform: str) -> int:
  """Returns the most that a program has allocated at once, on a device.

  Args:
    stats: `compiled.memory_analysis()`.
    platform: "cpu", "gpu" or "tpu".
  """
  if platform != "cpu":
    return stats.peak_memory_in_bytes
  # Which on CPUs leaves temporary arrays out.
  return (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
    + stats.temp_size_in_bytes
  )
