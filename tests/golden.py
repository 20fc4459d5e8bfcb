"""Small runs whose every bit is known: what a change of the house must keep.

python tests/golden.py writes tests/golden.json anew. Do that only where a
change of the numbers is wanted, and say so in its commit.
"""

import hashlib
import json
import pathlib
import platform
import tempfile

import jaxlib
import runs

from big_siglip import loop

FILE = pathlib.Path(__file__).with_name("golden.json")
STEPS = 50
# Nothing is drawn but the order: neither crops, nor one of several captions.
PLAIN = {
  "total_steps": STEPS,
  "log_every": 1,
  "checkpoint__every": STEPS,
  "evals__test__every": 2 * STEPS,
  "data__captions": "all",
  "data__crop_min_area": 1.0,
}
RUNS = {
  "digits": {"mesh__data": 8},
  "scan": {
    "mesh__data": 2,
    "mesh__fsdp": 4,
    "loss__name": "sigmoid",
    "optimizer__name": "adafactor",
    "optimizer__mu_dtype": "bfloat16",
    "model__scan": True,
    "model__remat": "full",
    "model__image__pooling": "map",
    "model__text__pooling": "mean",
    "model__text__length": 32,
  },
  "ring": {
    "mesh__data": 4,
    "mesh__tensor": 2,
    "batch_size": 32,
    "microbatch": 8,
    "loss__chunk_size": 2,
    "loss__duplicates": "ignore",
    "optimizer__name": "lion",
  },
}


def record(name):
  """Trains a run; returns {"losses": [STEPS], "fingerprint": of all bits}."""
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    loop.train(runs.config(**PLAIN, **RUNS[name]), str(folder))
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    data = folder / "checkpoints" / str(STEPS) / "data" / "metadata"
    fingerprint = json.loads(data.read_text())["fingerprint"]
  return {"losses": losses, "fingerprint": fingerprint}


def machine():
  """Returns what the last bits depend on, besides the program."""
  flags = pathlib.Path("/proc/cpuinfo")
  lines = flags.read_text().splitlines() if flags.exists() else []
  # A machine that is lent may call itself "AMD EPYC" and nothing more.
  names = "flags", "model", "cpu family", "stepping"
  found = sorted({line for line in lines if line.startswith(names)})
  digest = hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]
  return f"{platform.machine()} {digest} jaxlib {jaxlib.__version__}"


if __name__ == "__main__":
  import conftest  # noqa: F401  The devices and the compiler of the tests.

  recorded = {name: record(name) for name in RUNS}
  recorded["machine"] = machine()
  FILE.write_text(json.dumps(recorded, indent=1) + "\n")
