"""Images a second: 640x480 JPEG files and captions to 224 px and tokens.

python -m benchmarks.data --peers=.venv-tf/bin/python   # make bench-data
python -m benchmarks.data --quick                       # without the peers

Ours (tar shards -> `train_batches`) against a tf.data pipeline and against
open_clip's own transform and tokenizer on webdataset, from the same images with
the same number of cores; in turn, in one run, as medians of ratios. Then: how
much of what the decoder could do arrives, and what a start on a billion
examples costs.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

from absl import flags
import numpy as np
from PIL import Image

from benchmarks.data_peers.rate import cpu_seconds, rate
from big_siglip.data.batch import Batch, empty, Field, Fields
from big_siglip.data.mixture import Mixture
from big_siglip.data.pipeline import train_batches
from big_siglip.data.sources import Example, open_source
from big_siglip.data.text import make_tokenizer
from big_siglip.data.views import Pixels, Sample, Tokens

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "configs" / "scenes.model"
SIZE, LENGTH, BATCH = 224, 64, 128
SHARDS, PHOTOS, EACH = 4, 96, 384  # Photos of a shard, and its samples.
# Each shard is named so often: 98,304 examples, for an order that costs what it
# does with a real set, from files that all fit into memory.
TIMES = 64
WORDS = "a red square above the small blue circle left of two green stars"


def photo(rng: np.random.Generator) -> bytes:
  """Returns a JPEG file with the spectrum of a photo, some 80 kB."""
  shape = (480, 640)
  rows, columns = (np.fft.fftfreq(n)[:, None] for n in shape)
  amplitude = 1 / np.maximum(np.hypot(rows, columns.T), 1 / 640) ** 1.5
  layers = []
  for _ in range(3):
    spectrum = np.fft.fft2(rng.normal(size=shape)) * amplitude
    layers.append(np.fft.ifft2(spectrum).real)
  grey = layers[0]
  pixels = np.stack([grey + 0.3 * layer for layer in layers], -1)
  pixels = 128 + 52 * (pixels - pixels.mean()) / pixels.std()
  buffer = io.BytesIO()
  image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
  image.save(buffer, "jpeg", quality=90)
  return buffer.getvalue()


def write_shards(folder: pathlib.Path) -> None:
  """Writes tar shards of NAME.jpg and NAME.txt."""
  rng = np.random.default_rng(0)
  words = WORDS.split()
  for shard in range(SHARDS):
    photos = [photo(rng) for _ in range(PHOTOS)]
    with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
      for i in range(EACH):
        caption = " ".join(rng.permutation(words))
        for kind, data in (
          ("jpg", photos[i % PHOTOS]),
          ("txt", caption.encode()),
        ):
          member = tarfile.TarInfo(f"{shard:04d}{i:05d}.{kind}")
          member.size = len(data)
          tar.addfile(member, io.BytesIO(data))


def views() -> tuple[Pixels, Tokens]:
  """Returns what is measured."""
  return Pixels(SIZE), Tokens(make_tokenizer(str(TOKENIZER)), LENGTH)


def ours(folder, seconds: float, decoder: str, **how) -> tuple[float, float]:
  """Returns images a second in the training loop, and their CPU time."""
  source = open_source("tar", "all", "::".join([str(folder)] * TIMES))
  batches = train_batches(
    source, views(), batch_size=BATCH, seed=0, decoder=decoder, **how
  )
  with contextlib.closing(batches):
    return rate(batches, BATCH, seconds)


def decoder_alone(
  folder, seconds: float, decoder: str, threads: int = 1
) -> tuple[float, float]:
  """Returns the same of threads that only decode and resize the same files."""
  source = open_source("tar", "all", str(folder))
  examples = list(source)
  pixels, fast = Pixels(SIZE), decoder == "fast"
  counts = [0] * threads

  def work(number: int) -> None:
    place = number * len(examples) // threads
    out = empty(pixels.fields(0), 1)
    while time.perf_counter() < end:
      pixels([Sample.of(examples[place % len(examples)], fast)], (), out)
      counts[number] += 1
      place += 1

  begin, spent = time.perf_counter(), cpu_seconds()
  end = begin + seconds
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    list(pool.map(work, range(threads)))
  done = sum(counts)
  cpu = 1e3 * (cpu_seconds() - spent) / done
  return done / (time.perf_counter() - begin), cpu


def peer(python: str, name: str, folder, seconds: float) -> tuple[float, ...]:
  """Returns the same of another pipeline, in its own environment."""
  program = ROOT / "benchmarks" / "data_peers" / f"{name}.py"
  done = subprocess.run(
    [python, str(program), str(folder), str(TOKENIZER), str(seconds)],
    capture_output=True,
    text=True,
    env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""},
  )
  if done.returncode:
    raise RuntimeError(f"{name}:\n{done.stderr[-2_000:]}")
  return tuple(map(float, done.stdout.split()[-2:]))


class Billion:
  """A source of a billion examples that come from nowhere."""

  class_names = None

  def __len__(self) -> int:
    return 10**9

  def __getitem__(self, index: int) -> Example:
    return Example(b"", (str(index),), str(index))


@dataclasses.dataclass(frozen=True)
class Numbers:
  """A view of their numbers."""

  name: str = "number"

  def fields(self, batch: int) -> Fields:
    """Returns the one field."""
    del batch
    return {"number": Field((), "int64")}

  def __call__(self, examples, rngs, out: Batch) -> dict:
    """Writes the numbers."""
    del rngs
    out["number"][:] = [int(example.texts[0]) for example in examples]
    return {}


_START = """
import resource, time
from absl import flags
from benchmarks import data
flags.FLAGS.mark_as_parsed()
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = memory(), time.perf_counter()
data.start_on_a_billion()
print(time.perf_counter() - start, memory() - before)
"""


def start_on_a_billion() -> None:
  """Loads a first batch of a mixture of two billion-example sources."""
  mixed = Mixture({"a": Billion(), "b": Billion()}, {"a": 1.0, "b": 3.0})
  batches = train_batches(
    mixed,
    [Numbers()],
    batch_size=4_096,
    seed=0,
  )
  with contextlib.closing(batches):
    assert len(set(next(batches)["index"].tolist())) == 4_096


def billion() -> dict[str, float]:
  """Returns seconds and MB of a start, in a process of its own."""
  done = subprocess.run(
    [sys.executable, "-c", _START], cwd=ROOT, capture_output=True, text=True
  )
  seconds, megabytes = map(float, done.stdout.split())
  return {"seconds": seconds, "megabytes": megabytes}


def main() -> None:
  """Measures and prints; the last line is JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--peers", help="python with TensorFlow and open_clip")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=6.0)
  parser.add_argument("--quick", action="store_true")
  args = parser.parse_args()
  flags.FLAGS.mark_as_parsed()  # grain hands them to its workers.
  rounds, seconds = (2, 2.0) if args.quick else (args.rounds, args.seconds)
  cores = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_shards(folder)
    found = measure(folder, args.peers, rounds, seconds, cores)
  found["billion"] = billion()
  print(json.dumps(found))


def measure(folder, peers, rounds, seconds, cores) -> dict:
  """Runs all in turn; returns medians and the medians of ratios to ours."""
  threads = dict(num_threads=cores)
  workers = dict(num_workers=cores, num_threads=1)
  runs = {
    "ours": lambda: ours(folder, seconds, "fast", **threads),
    "ours, processes": lambda: ours(folder, seconds, "fast", **workers),
    "ours, Pillow": lambda: ours(folder, seconds, "pillow", **threads),
    "decoder, one core": lambda: decoder_alone(folder, seconds, "fast"),
    "decoder, all cores": lambda: decoder_alone(
      folder, seconds, "fast", threads=cores
    ),
    "Pillow, one core": lambda: decoder_alone(folder, seconds, "pillow"),
  }
  for name in ("tf_data", "webdataset_pillow") if peers else ():
    runs[name] = functools.partial(peer, peers, name, folder, seconds)
  taken = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      taken[name].append(run())
  report = {}
  for name, values in taken.items():
    pairs = list(zip(taken["ours"], values, strict=True))
    row = report[name] = {
      "images_per_second": statistics.median(v[0] for v in values),
      "cpu_ms": statistics.median(v[1] for v in values),
      "speed_ratio": statistics.median(o[0] / v[0] for o, v in pairs),
      "cpu_ratio": statistics.median(v[1] / o[1] for o, v in pairs),
    }
    print(
      f"{name:20} {row['images_per_second']:7.0f} images/s"
      f" {row['cpu_ms']:7.2f} ms CPU   ours faster by"
      f" {row['speed_ratio']:5.2f}, in CPU time {row['cpu_ratio']:5.2f}",
      flush=True,
    )
  for name in ("ours", "ours, processes"):
    one, every = (
      statistics.median(
        v[0] / (times * a[0])
        for v, a in zip(taken[name], taken[decoder], strict=True)
      )
      for decoder, times in (
        ("decoder, one core", cores),
        ("decoder, all cores", 1),
      )
    )
    report[name] |= {"of_cores": one, "of_all_cores": every}
    print(
      f"{name}: {every:.1%} of what the decoder alone does on all {cores} cores"
      f" arrive, {one:.1%} of {cores} x what it does on one"
    )
  return report


if __name__ == "__main__":
  main()
