"""How fast, and how nearly, each index searches: 1,000,000 x 768 embeddings.

python -m benchmarks.search [--count=1000000] [--indexes=lancedb,hnsw]
  [--folder=FOLDER] [--database=http://localhost:19530] [--json]

Writes a folder of embeddings as two towers make them (benchmarks.search_data),
asks exact search for the ten nearest of 100 queries by image and 100 by text,
without and with filters, then makes each index and asks it query by query, by
its default settings. Prints what it takes to make it, its size on disk, and of
each kind of query: recall@10 against exact search, the median and the 95th
percentile of the time, the processors' time (which other programs hardly
change), and the ratio of exact search's time to this one's, in this run. Half
of the queries of each kind go before, and are not counted: pages are read, and
programs compiled. hnsw holds all rows in memory as float32. What was
written stays for another run.
"""

import argparse
import json
import pathlib
import resource
import shutil
import statistics
import time
from typing import Any

import numpy as np

from benchmarks import search_data
from big_siglip import embeddings
from big_siglip.embeddings import index

TOP = 10
QUERIES = 100  # Of each kind.
EXACT = 3  # Times that exact search is asked for one query.
# Without; a quarter, a hundredth of the rows, whatever these mean; a subject.
FILTERS = (None, "width >= 7500", "width < 100", "subject = 7")
_FILES = {"hnsw": "_hnsw.*", "lancedb": "_lancedb"}


def measure(
  folder: pathlib.Path, count: int, width: int, names: list[str], database: str
) -> dict[str, Any]:
  """Writes, asks and times; prints each line when it is known."""
  world = search_data.World(width)
  print(f"{count:,} rows of {width} float16 numbers, made so that")
  for line in search_data.describe(world):
    print(f"  {line}", flush=True)
  search_data.write(folder, world, count, width, "float16")
  reader, queries = embeddings.Reader(folder), world.queries(QUERIES)
  truth, exact = _ask_exactly(reader, queries)
  result = {"count": count, "width": width, "exact": exact, "indexes": {}}
  for name in names:
    choice = index.Choice(name, database if name == "milvus" else "")
    _remove(folder, name)
    start = _now()
    found = index.open_index(reader, choice)
    made = _since(start)
    size = sum(file.stat().st_size for file in _files(folder, name))
    print(
      f"{name}: made in {made['seconds']:.0f} s ({made['cpu']:.0f} s of "
      f"processors), {size / 1e9:.2f} GB on disk",
      flush=True,
    )
    asked = [
      _ask(found, queries[kind], truth[kind, where], where)
      | {"kind": kind, "where": where}
      for where in FILTERS
      for kind in queries
    ]
    result["indexes"][name] = {**made, "bytes": size, "asked": asked}
    _print(asked, exact)
  return result


def _ask_exactly(reader, queries):
  """Returns the nearest rows of all queries, and the time of one, by filter."""
  found, truth, times = index.open_index(reader), {}, {}
  everything = np.concatenate(list(queries.values()))
  for where in FILTERS:
    _, numbers = found.search(everything, TOP, where)
    parts = np.split(numbers, len(queries))
    truth |= {(k, where): p for k, p in zip(queries, parts, strict=True)}
    found.search(everything[:1], TOP, where)
    times[where or ""] = [
      _time(lambda where=where: found.search(everything[:1], TOP, where))
      for _ in range(EXACT)
    ]
    seconds, cpu = _median(times[where or ""])
    print(
      f"exact, {where or 'all rows'}: {1e3 * seconds:.0f} ms, "
      f"{1e3 * cpu:.0f} ms of processors",
      flush=True,
    )
  return truth, times


def _ask(found, queries, truth, where) -> dict[str, Any]:
  half = len(queries) // 2
  for query in queries[:half]:
    found.search(query[None], TOP, where)
  times, hits, there = [], 0, 0
  for query, right in zip(queries[half:], truth[half:], strict=True):
    numbers = None

    def search(query=query):
      nonlocal numbers
      numbers = found.search(query[None], TOP, where)[1][0]

    times.append(_time(search))
    right = right[right >= 0]
    hits += len(np.intersect1d(right, numbers))
    there += len(right)
  milliseconds = [1e3 * seconds for seconds, _ in times]
  return {
    "recall": hits / there,
    "p50": float(np.percentile(milliseconds, 50)),
    "p95": float(np.percentile(milliseconds, 95)),
    "cpu": 1e3 * statistics.mean(cpu for _, cpu in times),
  }


def _print(asked, exact) -> None:
  print(f"  {'':24}recall@10  p50 ms  p95 ms  cpu ms  exact's time / this")
  for one in asked:
    what = f"{one['kind']}, {one['where'] or 'all rows'}"
    ratio = 1e3 * _median(exact[one["where"] or ""])[0] / one["p50"]
    print(
      f"  {what:24}{one['recall']:9.3f}{one['p50']:8.1f}{one['p95']:8.1f}"
      f"{one['cpu']:8.1f}{ratio:12.0f}",
      flush=True,
    )


def _median(times):
  return [statistics.median(values) for values in zip(*times, strict=True)]


def _now() -> tuple[float, float]:
  used = resource.getrusage(resource.RUSAGE_SELF)
  return time.perf_counter(), used.ru_utime + used.ru_stime


def _since(start: tuple[float, float]) -> dict[str, float]:
  seconds, cpu = (a - b for a, b in zip(_now(), start, strict=True))
  return {"seconds": seconds, "cpu": cpu}


def _time(function) -> tuple[float, float]:
  start = _now()
  function()
  took = _since(start)
  return took["seconds"], took["cpu"]


def _files(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  places = folder.glob(_FILES[name]) if name in _FILES else ()
  return [
    file
    for place in places
    for file in ([place] if place.is_file() else place.rglob("*"))
    if file.is_file()
  ]


def _remove(folder: pathlib.Path, name: str) -> None:
  for file in _files(folder, name):
    file.unlink()
  if name == "lancedb":
    shutil.rmtree(folder / "_lancedb", ignore_errors=True)


def main() -> None:
  """Prints lines, and JSON if it is asked for."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--count", type=int, default=1_000_000)
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--indexes", default="lancedb,hnsw")
  parser.add_argument("--folder", default="runs/search")
  parser.add_argument("--database", default="")
  arguments = parser.parse_args()
  folder = pathlib.Path(arguments.folder) / f"{arguments.count}"
  result = measure(
    folder,
    arguments.count,
    arguments.width,
    arguments.indexes.split(","),
    arguments.database,
  )
  if arguments.json:
    print(json.dumps(result))


if __name__ == "__main__":
  main()
