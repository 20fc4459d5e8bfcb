"""Times training on a GPU: steps, attention, the loss. Needs no network.

python -m benchmarks.gpu [--json=gpu.json] [--parts=steps,ring] [--minutes=9.5]
python -m benchmarks.gpu --tiny    # every line of it, on a CPU: no measurement

Our step of B/16 and So400m/14 (bfloat16, blocks computed again) stands beside a
plain one in JAX (benchmarks/plain.py) and transformers' in PyTorch, where that
sees the GPU; then attention by each implementation, the ring loss in tiles
beside the dense one, our step on all GPUs where there are several, changes of
our step, and flags of XLA. The batch is the largest power of two whose step
fits by the compiler's word, up to --most, and the same for all steps of a
model. A time is the median of 5 to 50 steps after 3 that warm up; the spread is
from the fastest to the slowest. Each row is measured by a process of its own,
which is ended when its time is over; what does not fit into --minutes is left
out and named. docs/gpu.md says more.
"""

import argparse
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from benchmarks.gpu import needs, table
from benchmarks.gpu.parts import FRACTION, FRACTION_NAMES, PARTS, Run, runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
_TINY = {"most": "8", "seconds": "0.1", "gib": "0.5"}
_TINY_PATIENCE = 6  # Times as long: a CPU compiles slowly.


class Benchmark:
  """All that was measured so far, and until when to go on."""

  def __init__(self, given: argparse.Namespace):
    """Measures nothing yet."""
    self._given = given
    self._end = time.monotonic() + 60 * given.minutes
    self._batch_sizes: dict[str, int] = {}
    self._part = ""
    self.rows: list[dict[str, Any]] = []
    self.chip: dict[str, Any] = {}

  def run(self, run: Run) -> None:
    """Runs one process and prints its rows as they come."""
    if run.part != self._part and run.part != "chip":
      self._part = run.part
      print(f"\n{run.part}\n{table.head(run.part)}", flush=True)
    left = self._end - time.monotonic()
    if left < run.seconds / 4:  # Too little to end with something.
      self._add(run, {"skipped": f"left out: {max(left, 0):.0f} s are left"})
      return
    patience = _TINY_PATIENCE if self._given.tiny else 1
    seconds = min(run.seconds * patience, left)
    for row in _rows(self._command(run), _environment(run), seconds):
      self._add(run, row)

  def _command(self, run: Run) -> list[str]:
    """Returns the command line of a process."""
    command = [sys.executable, "-m", f"benchmarks.gpu.{run.module}"]
    command += run.arguments
    given = self._given
    size = given.batch_size or self._batch_sizes.get(run.model)
    if run.part == "devices" and size:  # As many examples for each.
      size *= self.chip["devices"]
    if run.model and size:
      command.append(f"--batch_size={size}")
    elif run.module == "torch_step":
      command.append("--batch_size=256")
    elif run.model:
      command.append(f"--most={_TINY['most'] if given.tiny else given.most}")
    if given.tiny:
      command += ["--tiny", f"--seconds={_TINY['seconds']}"]
      if run.module in ("steps", "ring"):
        command.append(f"--gib={_TINY['gib']}")
    return command

  def _add(self, run: Run, row: dict[str, Any]) -> None:
    """Completes a row, keeps and prints it."""
    row = {"part": run.part, "config": run.model, **row}
    if run.who or "who" not in row:
      row["who"] = run.who or " ".join((run.module, *run.arguments))
    if run.part == "chip":
      self.chip |= row
      said = [row["skipped"]] if "skipped" in row else table.chip_lines(row)
      print("\n".join(said), flush=True)
    else:
      table.derive(run.part, row, self.chip)
      if run.part == "steps" and "seconds" in row:
        self._batch_sizes.setdefault(run.model, row["batch_size"])
      for field, value in _named(run).items():
        row.setdefault(field, value)
      print(table.line(run.part, row), flush=True)
    self.rows.append(row)
    if self._given.json:
      text = json.dumps({"chip": self.chip, "rows": self.rows}, indent=1)
      pathlib.Path(self._given.json).write_text(text + "\n")


def _named(run: Run) -> dict[str, Any]:
  """Returns what a row is called whose process did not say it."""
  unsaid = {"shape": run.module, "backend": "", "tokens": "", "heads": ""}
  return {**unsaid, "size": "", "loss": run.module, "n": 0}


def _environment(run: Run) -> dict[str, str]:
  """Returns that of a process; what the user has set wins, or is added to."""
  environment = dict(os.environ)
  if not any(name in environment for name in FRACTION_NAMES):
    environment[FRACTION_NAMES[0]] = FRACTION
  for name, value in run.environment:
    environment[name] = f"{environment.get(name, '')} {value}".strip()
  return environment


def _rows(command: list[str], environment: dict[str, str], seconds: float):
  """Yields the rows that a process says, and one that tells how it failed."""
  lines: queue.Queue[str | None] = queue.Queue()
  end = time.monotonic() + seconds
  with (
    tempfile.TemporaryFile("w+") as said,
    subprocess.Popen(
      command,
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=said,
      text=True,
    ) as process,
  ):
    threading.Thread(
      target=_read, args=(process.stdout, lines), daemon=True
    ).start()
    try:
      while line := lines.get(timeout=max(end - time.monotonic(), 0)):
        if line.startswith("{"):
          yield json.loads(line)
    except queue.Empty:
      yield {"skipped": f"ended: it was not done after {seconds:.0f} s"}
      return
    finally:
      process.kill()
    if status := process.wait():
      said.seek(0)
      last = [line.strip() for line in said if line.strip()][-1:]
      yield {"skipped": f"failed with {status}: {''.join(last)[:300]}"}


def _read(stream, lines) -> None:
  """Passes on all lines, and None at the end."""
  for line in stream:
    lines.put(line)
  lines.put(None)


def main() -> int:
  """Runs all parts; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", help="file to write all figures to")
  parser.add_argument("--parts", default=",".join(PARTS))
  parser.add_argument("--minutes", type=float, default=9.5)
  parser.add_argument("--batch_size", type=int, help="default: what fits")
  parser.add_argument("--most", type=int, default=4_096, help="of what fits")
  parser.add_argument("--tiny", action="store_true", help="try it on a CPU")
  given = parser.parse_args()
  wanted = given.parts.split(",")
  if unknown := [part for part in wanted if part not in PARTS]:
    known = ", ".join(PARTS)
    print(f"error: --parts={unknown[0]}: must be of {known}", file=sys.stderr)
    return 2
  if lacking := needs.missing():
    print(
      f"error: needs {', '.join(lacking)}: pip install "
      f"{' '.join(repr(x) for x in lacking)}, or make bench-gpu WHEELS=FOLDER "
      "where there is no network (docs/gpu.md)",
      file=sys.stderr,
    )
    return 2
  benchmark = Benchmark(given)
  for run in runs({"chip", *wanted}):
    if run.part == "devices" and benchmark.chip["devices"] == 1:
      continue
    benchmark.run(run)
    if "skipped" in benchmark.chip:
      print(
        "error: nothing to measure; --tiny tries it on a CPU", file=sys.stderr
      )
      return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
