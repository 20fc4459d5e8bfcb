"""What can be wrong with data, how it is counted, and how it is told.

An example that cannot be used raises `errors.BadExample` with one of `KINDS`;
another takes its place. Each row of a batch carries how often each kind came up
for it, and who the first few were, so that nothing is lost between the threads
or processes that load and the one that trains.
"""

from collections.abc import Sequence
import dataclasses
import threading

import numpy as np

from big_siglip.errors import BadExample

KINDS = (
  "image",  # Bytes that are no image, or only half of one.
  "caption",  # No caption, or empty ones alone.
  "record",  # A damaged or truncated record or shard.
  "missing",  # A file that is not there (any more).
  "storage",  # Not reached, however often it was tried.
)
# What rows count: examples that were skipped, by kind, and reads that went well
# at a later try.
COUNTERS = (*KINDS, "retried")

# One that was skipped, as a batch carries it: texts are UTF-8, cut to fit.
SKIPPED = np.dtype(
  [
    ("index", np.int64),  # -1 where there is none.
    ("kind", "S16"),
    ("name", "S128"),
    ("reason", "S192"),
  ]
)


@dataclasses.dataclass(frozen=True)
class Fault:
  """One thing that is wrong with the data.

  Attributes:
    index: the number of the example; -1 for a whole shard.
    kind: one of `KINDS`.
    name: what the example or the shard is called.
    reason: one line.
  """

  index: int
  kind: str
  name: str
  reason: str

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"kind {self.kind!r}: must be one of {KINDS}")

  @classmethod
  def of(cls, index: int, name: str, error: BadExample) -> "Fault":
    """Returns the fault of an example that raised `error`.

    Args:
      index: its number.
      name: what it is called; "" where reading did not get so far.
      error: what it raised.
    """
    name = name or error.name or f"example {index}"
    return cls(index, error.kind, name, " ".join(str(error).split()))


def as_rows(
  told: Sequence[tuple[Sequence[Fault], int]], length: int
) -> dict[str, np.ndarray]:
  """Returns what n rows of a batch carry of their faults.

  Args:
    told: for each row the faults of the examples in whose place its own came,
      and how many reads went well at a later try.
    length: how many faults of a row are named; all are counted.

  Returns:
    "faults" int32 [n, len(COUNTERS)] and "skipped" `SKIPPED` [n, length].
  """
  counts = np.zeros((len(told), len(COUNTERS)), np.int32)
  skipped = np.zeros((len(told), length), SKIPPED)
  skipped["index"] = -1
  for row, (faults, retried) in enumerate(told):
    if retried:
      counts[row, -1] = retried
    for fault in faults:
      counts[row, KINDS.index(fault.kind)] += 1
    for place, fault in zip(skipped[row], faults, strict=False):
      place["index"] = fault.index
      for key in ("kind", "name", "reason"):  # Names may hold any bytes.
        place[key] = getattr(fault, key).encode("utf-8", "backslashreplace")
  return {"faults": counts, "skipped": skipped}


def from_rows(skipped: np.ndarray) -> list[Fault]:
  """Returns the faults that a batch names: `SKIPPED` of any shape."""
  named = skipped[skipped["index"] >= 0]
  return [
    Fault(
      int(row["index"]),
      *(
        row[key].decode("utf-8", "ignore") for key in ("kind", "name", "reason")
      ),
    )
    for row in named
  ]


class _Retries(threading.local):
  """Every row is loaded by one thread, which counts for it alone."""

  count = 0


_retries = _Retries()


def count_retry() -> None:
  """Counts a read of this thread that went well at a later try."""
  _retries.count += 1


def take_retries() -> int:
  """Returns this thread's count, and starts it again from zero."""
  count, _retries.count = _retries.count, 0
  return count
