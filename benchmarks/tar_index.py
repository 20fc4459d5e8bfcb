"""Times how tar shards are indexed, against tarfile, in one run.

python -m benchmarks.tar_index [--json] [--gigabytes=10] [--kilobytes=60]

Makes a sparse shard: headers of jpg, txt and json files in img2dataset's
layout, whose bytes take no room on the disk, and times our index and the
standard library's in turn.
"""

import argparse
import json
import os
import pathlib
import tarfile
import tempfile
import time

from big_siglip.data.sources import tar_index


def make_shard(path: pathlib.Path, total: int, image_bytes: int) -> int:
  """Writes a sparse shard of `total` bytes; returns its samples."""
  samples = 0
  with path.open("wb") as file:
    while file.tell() < total:
      for extension, size in (
        ("jpg", image_bytes),
        ("txt", 80),
        ("json", 600),
      ):
        info = tarfile.TarInfo(f"{samples:09d}.{extension}")
        info.size = size
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.seek(-(-size // 512) * 512, os.SEEK_CUR)
      samples += 1
    file.write(bytes(1024))
  return samples


def seconds_ours(path: pathlib.Path, samples: int) -> float:
  """Returns how long our index takes; it must find all samples."""
  start = time.perf_counter()
  with path.open("rb") as file:
    index = tar_index.build(
      lambda a, b: os.pread(file.fileno(), b - a, a), path.stat().st_size
    )
  assert len(index.starts) == samples and not index.problem
  return time.perf_counter() - start


def seconds_tarfile(path: pathlib.Path, samples: int) -> float:
  """Returns how long tarfile takes to list the shard."""
  start = time.perf_counter()
  with tarfile.open(path) as tar:
    count = sum(1 for _ in tar)
  assert count == 3 * samples
  return time.perf_counter() - start


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--gigabytes", type=float, default=10)
  parser.add_argument("--kilobytes", type=float, default=60, help="an image")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "00000.tar"
    total = int(args.gigabytes * 1e9)
    samples = make_shard(path, total, int(args.kilobytes * 1e3))
    ours, theirs = [], []
    for _ in range(2):
      ours.append(seconds_ours(path, samples))
      theirs.append(seconds_tarfile(path, samples))
  result = {
    "samples": samples,
    "seconds": min(ours),
    "tarfile_seconds": min(theirs),
    "index_bytes": 4 * samples,
  }
  if args.json:
    print(json.dumps(result))
  else:
    print(
      f"{args.gigabytes:g} GB, {samples:,} samples: {min(ours):.2f} s, of"
      f" tarfile's {min(theirs):.2f} s; {4 * samples:,} bytes of index"
    )


if __name__ == "__main__":
  main()
