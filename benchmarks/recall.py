"""Recall@k over 200,000 x 200,000 random embeddings, against numpy in blocks.

python -m benchmarks.recall [--count=200000] [--width=64] [--json]

Two processes take turns, a tenth of the queries each time, over all candidates:
`big_siglip.evaluators.recall` and a loop of numpy matrix products in blocks of
the shape that is fastest here. Both count for every query the candidates that
come before its match. Prints the ratio of their times (the median over turns),
whether they found the same ranks, and the peak resident memory of each process,
which holds all embeddings.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
TURNS = 10
_SHAPES = ((84, 0), (512, 0), (256, 2048), (1024, 2048), (4096, 1024))


def make_embeddings(count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns queries and candidates, unit vectors; number i matches number i."""
  rng = np.random.default_rng(0)

  def unit(rows):
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows

  queries = unit(rng.standard_normal((count, width), np.float32))
  noise = rng.standard_normal((count, width), np.float32)
  noise *= np.float32(1.9 / width**0.5)
  noise += queries
  return queries, unit(noise)


class Numpy:
  """Matrix products in blocks."""

  def __init__(self, queries: np.ndarray, candidates: np.ndarray):
    """Tries which shape of a block is fastest."""
    self._queries, self._candidates = queries, candidates
    times = {}
    for shape in _SHAPES:
      self._shape = shape
      start = time.perf_counter()
      rows = min(len(queries), max(1024, shape[0]))
      self.ranks(slice(0, rows))
      times[shape] = (time.perf_counter() - start) / rows
    self._shape = min(times, key=times.get)
    print(f"numpy: blocks of {self._shape}", file=sys.stderr)

  def ranks(self, part: slice) -> np.ndarray:
    """Returns how many candidates come before each query's match."""
    rows, columns = self._shape
    count = len(self._candidates)
    found = []
    for start in range(part.start, part.stop, rows):
      block = slice(start, min(start + rows, part.stop))
      queries = self._queries[block]
      match = np.einsum("qd,qd->q", queries, self._candidates[block])
      threshold = (match - np.float32(1e-6))[:, None]
      before = np.full(len(queries), -1)  # The match itself is counted.
      for first in range(0, count, columns or count):
        others = self._candidates[first : first + (columns or count)]
        similarity = queries @ others.T
        before += np.count_nonzero(similarity >= threshold, axis=1)
      found.append(before)
    return np.concatenate(found)


class Ours:
  """What the evaluators use."""

  def __init__(self, queries: np.ndarray, candidates: np.ndarray):
    """Compiles."""
    from big_siglip.evaluators import recall

    self._recall = recall
    self._queries, self._candidates = queries, candidates
    self._ids = np.arange(len(queries))
    self.ranks(slice(0, min(len(queries), recall.QUERIES)))

  def ranks(self, part: slice) -> np.ndarray:
    """Returns how many candidates come before each query's match."""
    return self._recall.rank_of_match(
      self._queries[part], self._candidates, self._ids[part], self._ids
    )


def serve(name: str, count: str, width: str, folder: str) -> None:
  """Ranks a part of the queries for each line that comes in."""
  contestant = {"ours": Ours, "numpy": Numpy}[name](
    *make_embeddings(int(count), int(width))
  )
  found = []
  print("ready", flush=True)
  for line in sys.stdin:
    part = slice(*map(int, line.split()))
    start = time.perf_counter()
    found.append(contestant.ranks(part))
    print(time.perf_counter() - start, flush=True)
  np.save(pathlib.Path(folder) / f"{name}.npy", np.concatenate(found))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(peak, flush=True)


def measure(count: int, width: int, folder: str) -> dict:
  """Returns times, ranks and memory of both."""
  processes = {
    name: subprocess.Popen(
      [sys.executable, "-m", "benchmarks.recall", "--be", name]
      + [str(count), str(width), folder],
      cwd=ROOT,
      env={"JAX_PLATFORMS": "cpu", **os.environ},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for name in ("numpy", "ours")
  }
  seconds = {name: [] for name in processes}
  for process in processes.values():
    process.stdout.readline()
  bounds = np.linspace(0, count, TURNS + 1).astype(int)
  for turn in range(TURNS):
    for name in list(processes)[:: 1 if turn % 2 else -1]:
      process = processes[name]
      print(bounds[turn], bounds[turn + 1], file=process.stdin, flush=True)
      seconds[name].append(float(process.stdout.readline()))
  peaks = {}
  for name, process in processes.items():
    process.stdin.close()
    peaks[name] = int(process.stdout.readline())
    process.wait()
  ranks = {
    name: np.load(pathlib.Path(folder) / f"{name}.npy") for name in processes
  }
  pairs = zip(seconds["ours"], seconds["numpy"], strict=True)
  return {
    "count": count,
    "width": width,
    "seconds": {name: sum(values) for name, values in seconds.items()},
    "ratio": statistics.median(ours / numpy for ours, numpy in pairs),
    "peak_bytes": peaks,
    "recall": {
      name: [float(np.mean(values < k)) for k in (1, 5, 10)]
      for name, values in ranks.items()
    },
    "different_ranks": int(np.sum(ranks["ours"] != ranks["numpy"])),
  }


def main() -> None:
  """Prints a table, or JSON."""
  if sys.argv[1:2] == ["--be"]:
    serve(*sys.argv[2:])
    return
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--count", type=int, default=200_000)
  parser.add_argument("--width", type=int, default=64)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    result = measure(arguments.count, arguments.width, folder)
  if arguments.json:
    print(json.dumps(result))
    return
  print(f"recall over {result['count']:,} x {result['count']:,}:")
  print(f"{'':8}{'seconds':>9}{'peak MB':>9}  recall@1, @5, @10")
  for name, seconds in result["seconds"].items():
    peak = result["peak_bytes"][name] / 1e6
    recalls = ", ".join(f"{value:.6f}" for value in result["recall"][name])
    print(f"{name:8}{seconds:9.1f}{peak:9.0f}  {recalls}")
  print(f"time of ours / numpy: {result['ratio']:.3f}")
  print(f"queries of different rank: {result['different_ranks']}")


if __name__ == "__main__":
  main()
