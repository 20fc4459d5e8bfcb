"""Peak memory and time of importing a full So400m/14-384, in one run.

python -m benchmarks.import_weights [--folder=DIR]

Writes 3.5 GB of random values as transformers' safetensors, reads the file into
memory (numpy.fromfile), and imports it into device arrays, in processes of
their own that take turns. Prints the import's peak resident memory as a ratio
to the weights' bytes and its time as a ratio to that of reading. Needs 3.6 GB
of disk and 6 GB of memory.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from etils import epath
import numpy as np

from big_siglip.schema import sizes
from big_siglip.weights import huggingface
from big_siglip.weights.model_config import make_model_config

READ = """
import time
import numpy as np
start = time.perf_counter()
np.fromfile({file!r}, np.uint8)
print(time.perf_counter() - start)
"""
IMPORT = """
import json, resource, time
import jax
from ml_collections import ConfigDict
from big_siglip import sharding
from big_siglip.trained import saved
from big_siglip.weights import open_weights
mesh = sharding.make_mesh()
jax.block_until_ready(jax.numpy.zeros(3) + 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
start = time.perf_counter()
weights = open_weights({folder!r})
config = ConfigDict({{"model": weights.model, "data": {{}}}})
params = jax.block_until_ready(saved.load_weights(weights, config, mesh))
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
weights = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps([before, peak, weights, seconds]))
"""


def write_random(folder: pathlib.Path) -> pathlib.Path:
  """Writes the model of So400m/14-384; returns the file."""
  from big_siglip import build
  from big_siglip.models import SigLIP
  from big_siglip.weights.rules import write_params
  from big_siglip.weights.tensors import save_safetensors

  model = make_model_config(
    image=sizes.TowerSize(**{**vars(sizes.TOWERS["So400m"]), "patch_size": 14}),
    image_size=384,
    text=sizes.TOWERS["So400m"],
    vocab_size=32_000,
    length=64,
    embed_dim=1152,
  )
  from ml_collections import ConfigDict

  config = ConfigDict({"model": model})
  abstract = build.abstract_params(SigLIP(model), config, whole=True)
  rng = np.random.default_rng(0)
  tensors = [
    (key, shape, lambda s=shape: rng.standard_normal(s, np.float32))
    for key, shape, _ in write_params(abstract, huggingface.rules(model))
  ]
  file = folder / "model.safetensors"
  save_safetensors(file, tensors, {"format": "pt"})
  settings = json.dumps(huggingface.to_config(model))
  epath.Path(folder / "config.json").write_text(settings)
  return file


def run(code: str) -> str:
  """Returns what a process of its own prints."""
  done = subprocess.run(
    [sys.executable, "-c", code],
    check=True,
    capture_output=True,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )
  return done.stdout


def main() -> None:
  """Prints the ratios."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--folder", default=None)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
    folder = pathlib.Path(name)
    start = time.perf_counter()
    file = write_random(folder)
    print(
      f"written: {file.stat().st_size / 1e9:.2f} GB in "
      f"{time.perf_counter() - start:.0f} s"
    )
    reads, imports = [], []
    for _ in range(3):  # In turns: the disk's cache serves both.
      reads.append(float(run(READ.format(file=str(file)))))
      imports.append(json.loads(run(IMPORT.format(folder=str(folder)))))
  before, peak, weights, _ = imports[-1]
  seconds = [one[3] for one in imports]
  print(
    f"peak resident memory: {peak / 1e9:.2f} GB, {peak / weights:.3f} of the "
    f"weights' {weights / 1e9:.2f} GB (with JAX loaded, before: "
    f"{before / 1e9:.2f} GB)"
  )
  ratio = min(seconds) / min(reads)
  print(f"import {min(seconds):.2f} s / read {min(reads):.2f} s = {ratio:.2f}")


if __name__ == "__main__":
  main()
